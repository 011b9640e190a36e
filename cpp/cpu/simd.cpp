#include <atomic>
#include <string>

#include "cpu/kernels.h"

namespace vlkv {
namespace cpu {

#if defined(VLKV_X86)
void multiply_half_avx512(const ManyRows& tile);
extern const HalfAttend kHalfAttend;
extern const FixedKernels kVnniKernels;

namespace {

// The AVX-512 table, with products in bfloat16 and of bytes if the processor has them.
const Kernels& avx512_kernels() {
  static const Kernels table = [] {
    Kernels made = kAvx512Kernels;
    if (__builtin_cpu_supports("avx512bf16")) {
      made.linear.multiply_half = multiply_half_avx512;
      made.half_attend = &kHalfAttend;
    }
    if (__builtin_cpu_supports("avx512vnni")) made.linear.fixed = &kVnniKernels;
    return made;
  }();
  return table;
}

}  // namespace
#endif

const Kernels* kernels_of(Simd level) {
  if (level == Simd::kPortable) return &kPortableKernels;
#if defined(VLKV_X86)
  // Every processor with AVX2 converts halves too (F16C).
  if (level == Simd::kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return &kAvx2Kernels;
  }
  if (level == Simd::kAvx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return &avx512_kernels();
  }
#endif
  return nullptr;
}

namespace {

Simd best() {
  for (const Simd level : {Simd::kAvx512, Simd::kAvx2}) {
    if (kernels_of(level) != nullptr) return level;
  }
  return Simd::kPortable;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{kernels_of(best())};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

void use_kernels(const Kernels& table) { current().store(&table, std::memory_order_relaxed); }

}  // namespace cpu

Simd simd() {
  for (const Simd level : {Simd::kAvx512, Simd::kAvx2}) {
    if (cpu::kernels_of(level) == &cpu::kernels()) return level;
  }
  return Simd::kPortable;
}

const char* simd_name(Simd level) {
  switch (level) {
    case Simd::kAvx2:
      return "avx2";
    case Simd::kAvx512:
      return "avx512";
    case Simd::kPortable:
      break;
  }
  return "portable";
}

bool simd_available(Simd level) { return cpu::kernels_of(level) != nullptr; }

void set_simd(Simd level) {
  if (!simd_available(level)) {
    throw Unavailable(std::string("[vlkv] this processor or build has no ") + simd_name(level));
  }
  cpu::use_kernels(*cpu::kernels_of(level));
}

const char* version() { return VLKV_VERSION; }

}  // namespace vlkv
