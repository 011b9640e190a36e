// A draw's weights, as whole numbers: 2^40 for the largest logit. Float64 would be simpler, but most devices
// have little of it; so the exponent is a pair of floats, and the power of two is taken with integers.
#pragma once

#include "cuda/device/ptx.cuh"

namespace vlkv::cuda {

// 2^-x for x in [0, 1), both in units of 2^-32: 2^31 < result <= 2^32. The polynomial interpolates (1 - 2^-x)
// / x at Chebyshev's seven points; relative error below 2^-29, most of it from the products' truncation.
__device__ __forceinline__ uint64_t power_of_half(uint32_t x) {
  uint32_t p = 48550U;
  p = 639488U - __umulhi(p, x);
  p = 5712048U - __umulhi(p, x);
  p = 41304489U - __umulhi(p, x);
  p = 238387495U - __umulhi(p, x);
  p = 1031764939U - __umulhi(p, x);
  p = 2977044471U - __umulhi(p, x);
  return (uint64_t{1} << 32) - __umulhi(p, x);
}

struct DrawWeight {
  float best, high, low;  // the largest logit; log2(e) / temperature = high + low

  __device__ __forceinline__ uint64_t of(float logit) const {
    const float distance = best - logit, back = distance - best;
    const float lost = (best - (distance - back)) - (logit + back);  // the subtraction's error (Knuth)
    const float exponent = __fmul_rn(distance, high);
    if (!(exponent < 42.0F)) return 0;  // also without a number: a logit of -infinity
    const float rest = __fmaf_rn(distance, high, -exponent) + (distance * low + lost * high);
    // Neither sign nor carry can go wrong: |rest| is below exponent * 2^-22.
    const auto fixed = static_cast<uint64_t>(static_cast<int64_t>(exponent * 0x1p32F) +
                                             static_cast<int64_t>(rest * 0x1p32F));
    const auto halvings = static_cast<uint32_t>(fixed >> 32);
    const uint64_t half = (uint64_t{1} << halvings) >> 1;
    return ((power_of_half(static_cast<uint32_t>(fixed)) << 8) + half) >> halvings;
  }
};

// `best` is finite and `temperature` above 0. A factor beyond 2^120 gives weights to equal logits alone, as
// 2^120 does.
__device__ __forceinline__ DrawWeight draw_weight(float best, double temperature) {
  const double factor = 1.4426950408889634 / temperature;
  const double bounded = factor < 0x1p120 ? factor : 0x1p120;
  const auto high = static_cast<float>(bounded);
  return {best, high, static_cast<float>(bounded - static_cast<double>(high))};
}

}  // namespace vlkv::cuda
