// AttendRows: attention of each prompt's newest tokens over its cache, which takes their keys and values in
// place. The same operator as Attend (vlkv/attend.h), of any number of tokens and in 16 bits, on a CUDA
// device. Source: FlashAttention-2, arXiv 2307.08691 (online softmax by tiles); Flash-Decoding (a cache's
// keys in parts that are put together at the end).
#pragma once

#include "vlkv/types.h"

namespace vlkv {

// One dimension legend: B prompts, S tokens of the call, C cache slots, Hq query heads, Hkv KV heads, D head
// dim.
//
//   query                   [B, Hq, S, D]   float16 or bfloat16; all tensors have one type
//   key, value              [B, Hkv, S, D]  of the new tokens
//   key_cache, value_cache  [B, Hkv, C, D]  slots length .. length + count - 1 are written, 0 .. that are
//   read length                  [B]             int64, valid slots before the call count [B] int64, how many
//   of the S tokens are the prompt's; the others are padding result                  [B, Hq, S, D]   written;
//   padding rows are 0
//
// Token i of a prompt takes slot length + i and attends to slots 0 .. length + i (causal from the lower
// right): result = softmax(scale * query . key_cache) . value_cache; query head h reads KV head h / (Hq /
// Hkv). Slots past the last are neither read nor written. A row of a head with a logit that is NaN or
// +infinity, or with -infinities alone, is NaN. A value of one of the call's later tokens that is not finite
// makes earlier rows NaN too.
//
// Logits, weights' sums and results are float32; a weight is rounded to the tensors' type before it is
// multiplied with its value, as the matrix units take it, and the result is rounded once. Rows begin on 16
// bytes.
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

// Sizes, strides, pointers, types and settings; reads no tensor. Throws InvalidArgument. D is a multiple of 8
// up to 256.
VLKV_API void validate(const AttendRowsParams& params);

}  // namespace vlkv
