// What Pick's kernel takes; vlkv/pick.h says what the fields are.
#pragma once

#include "cuda/device/types.cuh"

namespace vlkv::cuda {

struct PickArgs {
  int64_t vocab;
  const float* logits;
  int32_t* token;
  float* best;
};

}  // namespace vlkv::cuda
