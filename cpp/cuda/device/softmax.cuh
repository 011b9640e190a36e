// What the softmaxes of Score and Attend share: maxima stay finite, and are kept as raw logits.
#pragma once

#include "cuda/device/types.cuh"

namespace vlkv::cuda {

inline constexpr float kLargest = 3.402823466e+38F;

// A raw logit's maximum in units of the exponent; finite, so that -infinity less it is -infinity.
VLKV_HOST_DEVICE float scaled_maximum(float maximum, float factor) {
  const float scaled = maximum * factor;
  return scaled < -kLargest ? -kLargest : scaled;
}

}  // namespace vlkv::cuda
