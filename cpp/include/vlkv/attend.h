// Attend: writes the keys and values of each prompt's new tokens to the cache's next slots, and attends over
// the cache. Source: online softmax (arXiv 1805.02867); a cache's keys are split, and the splits combined at
// the end (Flash-Decoding).
#pragma once

#include "vlkv/recall.h"
#include "vlkv/types.h"

namespace vlkv {

// One dimension legend: B prompts, S tokens of the call, C cache slots, Hq query heads, Hkv KV heads, D head
// dim.
//
//   query                   [B, S, Hq, D]   float32
//   key, value              [B, S, Hkv, D]  float32, of the new tokens
//   key_cache, value_cache  [B, Hkv, C, D]  rows of `cache`: float32, float16, bfloat16 or int8
//                                           (vlkv/types.h), dense; slots first..last are written, slots
//                                           0..last are read
//   first, last             [B]             int32, the slots of the first and the last new token, 0 to C - 1;
//                                           first null: last
//   result                  [B, S, Hq, D]   float32, written; overlaps no input
//
// Token i of a prompt takes slot first + i and attends to slots 0..first + i: to its own key and value as
// they are given, in float32, and to those before it as they are stored. result = softmax(scale * query .
// keys) . values; query head h reads KV head h / (Hq / Hkv). So a cache of fewer bits rounds what a token
// remembers and not the token itself; all later tokens, of the same call too, see the stored row, so that a
// result does not depend on how a prompt is divided into calls. Tokens after `last` are padding: they are not
// stored, and their result is 0. Slots after `last` are neither read nor written. A row of a head is NaN if
// one of its logits is NaN or +infinity, or all are -infinity. If a value of a later token of the call is not
// finite, earlier rows may become NaN too.
//
// With one row a prompt may also attend to the pages of evicted tokens that vlkv/recall.h chooses.
//
// All arithmetic is in float32; elements are widened exactly. A logit over int8 is the sum of the codes'
// products, times the scale. With more rows than one, an even D and a processor with AVX512_BF16, `precision`
// kBFloat16 rounds queries (times the scale), keys, values and the weights of softmax to bfloat16, which
// differ by at most 2^-9 of each; their sums stay in float32. Numbers under 2^-126 count as 0. Else it equals
// kFloat32.
//
// Method: the query heads of a KV head share each read of its cache, so with one row the cache is read once,
// and widened in registers. With more rows, blocks of up to 192 queries (384 in bfloat16) share each tile of
// 96 slots, which is widened or rounded once for all of them; lanes are queries. Extra memory: with one row,
// Hq * (D + 2) floats for each 1024 slots of each prompt; with more, up to 64 blocks of N * (2 * D + 3) +
// 96 * (2 * D + 48) floats, N queries. The result is bit for bit the same for every number of threads and
// every composition of the batch, with more rows also for every other division into calls of more than one
// row; instruction sets differ in rounding.
struct AttendParams {
  int64_t batch = 0, rows = 1, query_heads = 0, kv_heads = 0, slots = 0, head_dim = 0;
  DType cache = DType::kFloat32;
  const float* query = nullptr;
  const float* key = nullptr;
  const float* value = nullptr;
  void* key_cache = nullptr;
  void* value_cache = nullptr;
  const int32_t* first = nullptr;
  const int32_t* last = nullptr;
  const Recall* const* recall = nullptr;  // [B], null where a prompt has none; null: nowhere
  int64_t layer = 0;                      // which of the stores' layers
  float scale = 0.0F;                     // 0 = 1/sqrt(D)
  Precision precision = Precision::kFloat32;
  float* result = nullptr;
  int threads = 0;  // 0 = vlkv::threads()
};

// A framework's own threads. run() calls body(data, i) once for each i of [0, count), and returns when all
// calls have returned.
struct Loop {
  void (*run)(void* owner, int64_t count, void (*body)(void* data, int64_t i), void* data) = nullptr;
  void* owner = nullptr;
};

// Checks sizes, pointers and settings without reading tensors. Throws InvalidArgument.
VLKV_API void validate(const AttendParams& params);

// Validates, then checks every `first` and `last` before anything is written. Runs on `loop` if it has a run
// function, else on this library's threads. Throws InvalidArgument, or std::bad_alloc with nothing written.
VLKV_API void run_cpu(const AttendParams& params, const Loop& loop = {});

}  // namespace vlkv
