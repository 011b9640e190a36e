// The table of kernels of a tuned library: one instruction set, each operator's kernels from a file compiled
// with flags of its own. It takes the place of cpu/simd.cpp.
#include "cpu/kernels.h"
#include "tuned/operators.h"

namespace vlkv {
namespace cpu {

extern const Kernels kScorePart;
extern const Kernels kAttendPart;
extern const Kernels kLinearPart;

#if defined(VLKV_TUNED_BFLOAT16)
void multiply_half_avx512(const ManyRows& tile);
extern const HalfAttend kHalfAttend;
#endif
#if defined(VLKV_TUNED_VNNI)
extern const FixedKernels kVnniKernels;
#endif

const Kernels& kernels() {
  static const Kernels table = [] {
    Kernels made = kScorePart;
    made.attend = kAttendPart.attend;
    made.attend_vectors = kAttendPart.attend_vectors;
    made.attend_block = kAttendPart.attend_block;
    made.rate_pages = kAttendPart.rate_pages;
    made.linear = kLinearPart.linear;
#if defined(VLKV_TUNED_BFLOAT16)
    made.linear.multiply_half = multiply_half_avx512;
    made.half_attend = &kHalfAttend;
#endif
#if defined(VLKV_TUNED_VNNI)
    made.linear.fixed = &kVnniKernels;
#endif
    return made;
  }();
  return table;
}

}  // namespace cpu

namespace {

void score(const ScoreParams& p) { run_cpu(p); }
void evict(const EvictParams& p) { run_cpu(p); }

}  // namespace
}  // namespace vlkv

extern "C" VLKV_API const vlkv::Operators vlkv_operators;
const vlkv::Operators vlkv_operators = {.score = vlkv::score, .evict = vlkv::evict};
