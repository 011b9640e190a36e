// Score: the attention that each cached key receives from the observed rows, and the sparsity of that
// attention. Source: VL-Cache, arXiv 2410.23317, section 4 (post-vision attention, sparsity by a threshold on
// the row's maximum); Elastic Cache, arXiv 2407.18121 (importance as column sums).
#pragma once

#include <cstddef>

#include "vlkv/types.h"

namespace vlkv {

// One dimension legend: B prompts, W observed rows, C cache slots, Hq query heads, Hkv KV heads, D head dim.
//
//   query         [B, Hq, W, D]   float32, float16 or bfloat16
//   key           [B, Hkv, C, D]  float32, float16 or bfloat16, not necessarily the query's type
//   row_position  [B, W]          int32 or int64; row i attends to keys 0..row_position, -1 is a padding row
//   score         [B, Hkv, C]     float32, written
//   pairs, below  [B]             int64, written; may be null
//   sparsity      [B]             float32, written; may be null
//
// A = softmax(scale * query . key) in float32 over the keys that a row attends to; query head h reads KV head
// h / (Hq / Hkv). score is the sum of A over rows and over the query heads of each KV head, 0 for keys that
// no row attends to. pairs counts attended (row, key, query head); below counts those with A < threshold *
// (that row's largest A); sparsity = below / pairs, 0 if pairs is 0.
//
// accumulate: the call adds to score, pairs and below, so that a prompt can be scored in several calls;
// sparsity is then that of the sums. W = 0, C = 0 and B = 0 are valid.
//
// A row of one query head whose softmax is not finite (a logit is NaN or +infinity, or all are -infinity)
// adds nothing to score, pairs or below and does not affect other rows. A logit of -infinity has A = 0.
// Weights under 2^-126 of the largest among 96 neighbouring keys may count as 0.
//
// Method: rows of one KV group share each read of a key. The exponentials of a block of up to 64 rows stay in
// memory between the pass that computes each row's maximum and sum and the pass that adds columns, so each
// product is computed once. Extra memory, independent of W: 256 * C bytes for all threads, above 32 MiB only
// 64 * C (128 * C with AVX-512); as much for each thread if that is at most 8 MiB in total. The result is bit
// for bit the same for every number of threads; instruction sets differ in rounding.
struct ScoreParams {
  int64_t batch = 0, query_heads = 0, kv_heads = 0, rows = 0, slots = 0, head_dim = 0;
  ConstView query;
  ConstView key;
  const void* row_position = nullptr;
  IndexType row_position_type = IndexType::kInt64;
  int64_t row_position_stride_b = 0;
  float scale = 0.0F;  // 0 = 1/sqrt(D)
  float threshold = 0.01F;
  float* score = nullptr;
  int64_t score_stride_b = 0, score_stride_h = 0;
  int64_t* pairs = nullptr;
  int64_t* below = nullptr;
  float* sparsity = nullptr;
  bool accumulate = false;
  int threads = 0;  // 0 = vlkv::threads()
};

// Checks sizes, strides, pointers and settings without reading tensors. Throws InvalidArgument.
VLKV_API void validate(const ScoreParams& params);

// Validates, then checks every row_position against [-1, C) before anything is written. Throws
// InvalidArgument, or std::bad_alloc with nothing written.
VLKV_API void run_cpu(const ScoreParams& params);

}  // namespace vlkv
