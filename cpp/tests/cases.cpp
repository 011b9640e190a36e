#include "cases.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace vlkv::cpu {
extern const Kernels kWideKernels;
}

namespace vlkv::test {

uint64_t seed() {
  static const uint64_t value = [] {
    const char* given = std::getenv("VLKV_TEST_SEED");
    const uint64_t drawn = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
    std::printf("VLKV_TEST_SEED=%llu\n", static_cast<unsigned long long>(drawn));
    return drawn;
  }();
  return value;
}

Tensor::Tensor(Random& random, DType type, int64_t b, int64_t h, int64_t s, int64_t d, float spread,
               bool gaps, int64_t unit)
    : type_(type) {
  stride_s_ = d + (gaps ? 3 * unit : 0);
  stride_h_ = stride_s_ * s + (gaps ? 7 * unit : 0);
  stride_b_ = stride_h_ * h + (gaps ? 5 * unit : 0);
  // What lies in the gaps is a NaN, so that reading it shows.
  bytes_.assign(static_cast<size_t>((stride_b_ * b + 1) * size_of(type)), 0xff);
  for (int64_t i = 0; i < b * h * s * d; ++i) {
    set(i / d / s / h, i / d / s % h, i / d % s, i % d, random.normal(spread));
  }
}

double Tensor::at(int64_t b, int64_t h, int64_t s, int64_t d) const {
  const unsigned char* from = bytes_.data() + offset(b, h, s, d);
  if (type_ == DType::kFloat32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return type_ == DType::kFloat16 ? half_to_double(bits) : bfloat16_to_double(bits);
}

void Tensor::set(int64_t b, int64_t h, int64_t s, int64_t d, float value) {
  cpu::kPortableKernels.from_float(&value, type_, bytes_.data() + offset(b, h, s, d), 1);
}

std::vector<NamedKernels> all_kernels() {
  std::vector<NamedKernels> tables;
  for (const Simd level : {Simd::kPortable, Simd::kAvx2, Simd::kAvx512}) {
    if (const cpu::Kernels* table = cpu::kernels_of(level)) tables.push_back({simd_name(level), table});
  }
  tables.push_back({"sixteen lanes", &cpu::kWideKernels});
  return tables;
}

double half_to_double(uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  if (exponent == 31) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

double bfloat16_to_double(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

}  // namespace vlkv::test
