// Evict: keeps the most attended tokens of a cache, in order, and optionally merges the others into
// neighbours. Source: VL-Cache, arXiv 2410.23317 (top-k by score beside a recent window); Elastic Cache,
// arXiv 2407.18121 (merging each evicted token into the nearest kept one).
#pragma once

#include <cstddef>

#include "vlkv/types.h"

namespace vlkv {

enum class Merge : int32_t { kNone = 0, kNearestMean = 1 };

// One dimension legend: B prompts, C cache slots, Hkv KV heads, D head dim.
//
//   key, value                    [B, Hkv, C, D]         float32, float16 or bfloat16
//   score                         [B, Hkv, C]            float32; slots at or after `length` are not read
//   length, keep, sinks, recent   [B]                    int64, on the host
//   key_out, value_out            [B, Hkv, capacity, D]  of key's and value's type, written
//   position_out                  [B, Hkv, capacity]     int32, written: the slot that each kept token had
//
// With n = length[b] and k = min(keep[b], n): if k = n, every token stays. Otherwise the first sinks[b] and
// the last recent[b] tokens stay, and of the tokens between them the k - sinks - recent with the highest
// scores, ties to the lower slot. Kept tokens keep their order. A NaN score is lower than every number. Slots
// from k to capacity are zero with position -1, unless zero_tail is false: then they are not written.
//
// per_head = false: one selection for all heads of a prompt, by scores summed over heads in float32, in the
// order of heads.
//
// Merge::kNearestMean: each kept slot becomes the mean of itself and of the evicted slots nearest to it (tie:
// the lower one): float32 sums in ascending slot order, rounded once.
//
// Outputs must not overlap inputs. Selection is O(C): a radix select on the scores' bits.
struct EvictParams {
  int64_t batch = 0, kv_heads = 0, slots = 0, head_dim = 0, capacity = 0;
  ConstView key, value;
  const float* score = nullptr;
  int64_t score_stride_b = 0, score_stride_h = 0;
  const int64_t* length = nullptr;
  const int64_t* keep = nullptr;
  const int64_t* sinks = nullptr;
  const int64_t* recent = nullptr;
  View key_out, value_out;
  int32_t* position_out = nullptr;
  int64_t position_stride_b = 0, position_stride_h = 0;
  bool per_head = true;
  Merge merge = Merge::kNone;
  bool zero_tail = true;
  int threads = 0;  // 0 = vlkv::threads()
};

// Checks sizes, strides, pointers and settings without reading tensors. Throws InvalidArgument.
VLKV_API void validate(const EvictParams& params);

// Validates, then checks length, keep, sinks and recent of every prompt before anything is written:
// 0 <= length <= C, keep, sinks, recent >= 0, sinks + recent <= keep, min(keep, length) <= capacity.
// Throws InvalidArgument, or std::bad_alloc with nothing written.
VLKV_API void run_cpu(const EvictParams& params);

}  // namespace vlkv
