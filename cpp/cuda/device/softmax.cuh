// Softmax code that Score and Attend share: maxima stay finite and are stored as unscaled logits.
#pragma once

#include "cuda/device/types.cuh"

namespace vlkv::cuda {

inline constexpr float kLargest = 3.402823466e+38F;

// The maximum of unscaled logits in units of the exponent; it is finite, so that -infinity - maximum is
// -infinity.
VLKV_HOST_DEVICE float scaled_maximum(float maximum, float factor) {
  const float scaled = maximum * factor;
  return scaled < -kLargest ? -kLargest : scaled;
}

}  // namespace vlkv::cuda
