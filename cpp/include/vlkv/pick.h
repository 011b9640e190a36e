// Pick: the greedy choice of each prompt's next token, so that a device's logits need not come to the host.
#pragma once

#include "vlkv/types.h"

namespace vlkv {

// One dimension legend: B prompts, V vocabulary.
//
//   logits  [B, V]  float32, dense
//   token   [B]     int32, written: the lowest id of the largest logit; a NaN is larger than every number
//   best    [B]     float32, written: that logit, which tells whether the logits are sound
//
// All are in the device's memory.
struct PickParams {
  int64_t batch = 0, vocab = 0;
  const float* logits = nullptr;
  int32_t* token = nullptr;
  float* best = nullptr;
};

// Checks sizes and pointers without reading tensors. Throws InvalidArgument.
VLKV_API void validate(const PickParams& params);

}  // namespace vlkv
