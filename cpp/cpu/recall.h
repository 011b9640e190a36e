// Pages of evicted tokens inside Attend.
#pragma once

#include "cpu/kernels.h"
#include "vlkv/recall.h"

namespace vlkv::cpu {

// The query heads of one KV head of one prompt, and the states of the pages that they attend to.
struct RecallPart {
  const Recall* recall = nullptr;
  int64_t layer = 0, kv_head = 0, heads = 0;
  const float* query = nullptr;    // [heads][D], times scale and log2(e), not rotated
  const float* rotated = nullptr;  // the same, rotated
  const float* largest = nullptr;  // [heads], each query's largest logit over the cache
};

// How many pages are read of each KV head of that layer.
int64_t pages_read(const Recall& recall, int64_t layer);

// Chooses the pages and writes their states, [pages][heads][2 + D] as AttendPart says, over rotated values.
void attend_pages(const RecallPart& part, const Kernels& kernels, float* states);

}  // namespace vlkv::cpu
