// AttendRows: appends each prompt's newest keys and values to its cache, in place, and attends over it. It is
// the operator Attend (vlkv/attend.h) for any number of tokens, in 16 bits, on a CUDA device. Source:
// FlashAttention-2, arXiv 2307.08691 (online softmax by tiles); Flash-Decoding (a cache's keys are split,
// and the splits combined at the end).
#pragma once

#include "vlkv/types.h"

namespace vlkv {

// One dimension legend: B prompts, S tokens of the call, C cache slots, Hq query heads, Hkv KV heads, D head
// dim.
//
//   query                   [B, Hq, S, D]   float16 or bfloat16; all tensors have one type
//   key, value              [B, Hkv, S, D]  of the new tokens
//   key_cache, value_cache  [B, Hkv, C, D]  slots 0 .. length + count - 1 are read
//                                           slots length .. length + count - 1 are written before
//   length                  [B]             int64, valid slots before the call
//   count                   [B]             int64, the prompt's tokens; the rest of S is padding
//   result                  [B, Hq, S, D]   written; padding rows are 0
//
// Token i of a prompt is written to slot length + i and attends to slots 0 .. length + i (causal from the
// lower right): result = softmax(scale * query . key_cache) . value_cache; query head h reads KV head
// h / (Hq / Hkv). Slots after the last are neither read nor written. A row of a head is NaN if one of its
// logits is NaN or +infinity, or all are -infinity. If a value of a later token of the call is not finite,
// earlier rows become NaN too.
//
// Logits, sums of weights and results are float32; a weight is rounded to the tensors' type before it is
// multiplied by its value, as the matrix units require, and the result is rounded once. Rows are aligned to
// 16 bytes.
struct AttendRowsParams {
  int64_t batch = 0, query_heads = 0, kv_heads = 0, rows = 0, slots = 0, head_dim = 0;
  ConstView query, key, value;
  View key_cache, value_cache;
  const int64_t* length = nullptr;
  const int64_t* count = nullptr;
  float scale = 0.0F;  // 0 = 1/sqrt(D)
  View result;
};

inline constexpr int64_t kLargestAttendDim = 256;

// Checks sizes, strides, pointers, types and settings without reading tensors. Throws InvalidArgument. D must
// be a multiple of 8, at most 256.
VLKV_API void validate(const AttendRowsParams& params);

}  // namespace vlkv
