// Attend: one new token's attention over its prompt's cache, whose next slot its key and value take.
// Source: online softmax (arXiv 1805.02867); a cache's keys in parts that are put together at the end
// (Flash-Decoding).
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
// h / (Hq / Hkv). Slots past `last` are neither read nor written. A head with a logit that is NaN or
// +infinity, or with -infinities alone, is NaN.
//
// Method: the query heads of a KV head share each read of its cache, which so goes through memory once. Extra
// memory: Hq * (D + 2) floats for each 1024 slots of each prompt. The result is the same bit for bit for
// every number of threads and whatever else is in the batch; instruction sets differ in rounding.
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

// A framework's own threads. run calls body(data, i) once for each i of [0, count) and returns when all are
// done.
struct Loop {
  void (*run)(void* owner, int64_t count, void (*body)(void* data, int64_t i), void* data) = nullptr;
  void* owner = nullptr;
};

// Sizes, pointers and settings; reads no tensor. Throws InvalidArgument.
VLKV_API void validate(const AttendParams& params);

// Validates, then checks every `last` before anything is written. Runs on `loop` where it has a run, else on
// this library's threads. Throws InvalidArgument, or std::bad_alloc with nothing written.
VLKV_API void run_cpu(const AttendParams& params, const Loop& loop = {});

}  // namespace vlkv
