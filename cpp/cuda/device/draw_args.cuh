// What Draw's kernel takes; vlkv/draw.h says what the fields are.
#pragma once

#include "cuda/device/types.cuh"

namespace vlkv::cuda {

struct DrawArgs {
  int64_t vocab;
  const float* logits;
  const double* settings;
  int32_t* token;
  float* best;
};

}  // namespace vlkv::cuda
