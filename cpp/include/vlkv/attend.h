// Attend: writes the key and value of one new token per prompt to the cache's next slot, and attends over the
// cache. Source: online softmax (arXiv 1805.02867); a cache's keys are split, and the splits combined at the
// end (Flash-Decoding).
#pragma once

#include "vlkv/types.h"

namespace vlkv {

// One dimension legend: B prompts, C cache slots, Hq query heads, Hkv KV heads, D head dim.
//
//   query                   [B, Hq, D]      float32
//   key, value              [B, Hkv, D]     float32, of the new token
//   key_cache, value_cache  [B, Hkv, C, D]  float32; slot `last` is written, slots 0..last are read
//   last                    [B]             int32, the new token's slot, 0 to C - 1
//   result                  [B, Hq, D]      float32, written; overlaps no input
//
// result = softmax(scale * query . key_cache[0..last]) . value_cache[0..last]; query head h reads KV head
// h / (Hq / Hkv). Slots after `last` are neither read nor written. A head's result is NaN if one of its
// logits is NaN or +infinity, or all are -infinity.
//
// Method: the query heads of a KV head share each read of its cache, so the cache is read once. Extra memory:
// Hq * (D + 2) floats for each 1024 slots of each prompt. The result is bit for bit the same for every number
// of threads and every composition of the batch; instruction sets differ in rounding.
struct AttendParams {
  int64_t batch = 0, query_heads = 0, kv_heads = 0, slots = 0, head_dim = 0;
  const float* query = nullptr;
  const float* key = nullptr;
  const float* value = nullptr;
  float* key_cache = nullptr;
  float* value_cache = nullptr;
  const int32_t* last = nullptr;
  float scale = 0.0F;  // 0 = 1/sqrt(D)
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

// Validates, then checks every `last` before anything is written. Runs on `loop` if it has a run function,
// else on this library's threads. Throws InvalidArgument, or std::bad_alloc with nothing written.
VLKV_API void run_cpu(const AttendParams& params, const Loop& loop = {});

}  // namespace vlkv
