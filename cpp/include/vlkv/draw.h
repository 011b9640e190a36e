// Draw: each prompt's next token, drawn under temperature, top-k and top-p with a given random number, so
// that a device's logits need not come to the host. It chooses the token that the host's sampler chooses
// (python/vlkv/generation/sampling.py), up to rounding.
#pragma once

#include "vlkv/types.h"

namespace vlkv {

// The most logits of a prompt, so that sums of weights fit into 64 bits.
inline constexpr int64_t kMostDrawn = int64_t{1} << 22;

// How a prompt's token is drawn: four float64 side by side.
//
//   temperature  above 0 and finite; 0, below, or a NaN takes the largest logit, as Pick does
//   top_k        a whole number: the k largest logits and those equal to the k-th; below 1, from V on, or
//                a NaN: all
//   top_p        the smallest set of most likely tokens whose probabilities sum to at least this; from 1
//                on, or a NaN: all; 0 or below: one token. Of equal logits at the edge, those with the
//                highest ids are in the set
//   uniform      the random number, in [0, 1); what lies outside counts as the nearest number inside
struct DrawSettings {
  double temperature = 0, top_k = 0, top_p = 1, uniform = 0;
};
static_assert(sizeof(DrawSettings) == 4 * sizeof(double));

// One dimension legend: B prompts, V vocabulary.
//
//   logits    [B, V]  float32, dense
//   settings  [B, 4]  float64, dense
//   token     [B]     int32, written: the first id up to which the weights of the tokens that may be
//                     drawn sum to more than `uniform` of all of them
//   best      [B]     float32, written: the largest logit as Pick knows it. If it is a NaN or infinite,
//                     the logits are damaged and `token` is Pick's
//
// A weight is 2^((logit - best) log2(e) / temperature), rounded to whole 2^-40; its relative error is below
// 2^-28 before. Sums are sums of integers: equal inputs give equal tokens. All are in the device's memory.
struct DrawParams {
  int64_t batch = 0, vocab = 0;
  const float* logits = nullptr;
  const DrawSettings* settings = nullptr;
  int32_t* token = nullptr;
  float* best = nullptr;
};

// Checks sizes and pointers without reading tensors. Throws InvalidArgument.
VLKV_API void validate(const DrawParams& params);

}  // namespace vlkv
