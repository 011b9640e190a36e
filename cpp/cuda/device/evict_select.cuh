// Selects the slots to keep: a radix select on the scores' bits, one block per selection, on the scores' sum
// over heads if all heads share a selection.
#pragma once

#include "cuda/device/evict_slots.cuh"

namespace vlkv::cuda {

// Keys of one first digit that fit beside a histogram.
inline constexpr int kMostCandidates = kBins * (kCopies - 1);
static_assert(kSelectWarps <= 1 << kDigitBits, "a candidate's warp lies above its key");

// The threshold and the counts of each warp's stretch, from the keys of one first digit, if they fit into
// shared memory: the other digits and the counts then need no further pass over the scores. `rank` is the
// rank among these keys, and becomes that among equal ones.
__device__ __forceinline__ uint32_t find_among_candidates(SelectMemory& memory, const float* score,
                                                          const Stretch& stretch, uint32_t first_digit,
                                                          int32_t& rank) {
  constexpr uint32_t kRankMask = (1U << kRankBits) - 1;
  const auto thread = static_cast<uint32_t>(threadIdx.x);
  const uint32_t warp = thread / kWarp, lane = thread % kWarp;
  uint32_t* const candidates = memory.bins + kBins;
  if (thread == 0) memory.candidates = 0;
  __syncthreads();
  const int32_t above = append_candidates(memory, score, stretch, first_digit, warp, candidates);
  __syncthreads();
  const uint32_t count = memory.candidates;
  const uint32_t low = find_rest<1>(memory, candidates, count, rank);
  if (lane == 0) {
    memory.warps[warp] = above;
    memory.ties[warp] = 0;
  }
  __syncthreads();
  for (uint32_t i = thread; i < count; i += kSelectThreads) {
    const uint32_t key = candidates[i] & kRankMask;
    if (key < low) continue;
    int32_t* const counts = key > low ? memory.warps : memory.ties;
    atomicAdd(reinterpret_cast<uint32_t*>(counts) + (candidates[i] >> kRankBits), 1U);
  }
  return first_digit << kRankBits | low;
}

// Writes the slots of a selection with the highest keys, ascending; of equal keys the first ones. Each warp
// has a stretch of slots, whose kept ones are counted before any is written.
__device__ __forceinline__ void write_slots(SelectMemory& memory, const Selection& of) {
  const Stretch stretch = stretch_of_warp(of.begin, of.end);
  count_digits<kCopies>(memory, [&](auto add) {
    for_each_key(of.score, of.begin + threadIdx.x, of.end, kSelectThreads,
                 [&](uint32_t, uint32_t key) { add(key >> kRankBits); });
  });
  find_bin<kCopies>(memory, of.rank);
  const uint32_t first_digit = memory.bin;
  uint32_t threshold = first_digit << kRankBits;
  int32_t ties = memory.rank;
  if (memory.count <= kMostCandidates) {
    threshold = find_among_candidates(memory, of.score, stretch, first_digit, ties);
  } else {
    threshold = find_threshold(memory, of.score, of.begin, of.end, ties, threshold, ~uint32_t{0} << kRankBits,
                               kRankBits - kDigitBits);
    count_stretches(memory, of.score, stretch, threshold);
  }
  put_kept(memory, of, stretch, threshold, ties, 0, 0);
}

inline constexpr int kSumThreads = 256;

// shared_score[b, c] = the sum over heads, in their order. One thread per element of [B, C].
__global__ void __launch_bounds__(kSumThreads) evict_sum_heads(const EvictArgs args) {
  const int64_t item = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (item >= args.batch * args.slots) return;
  const int64_t b = item / args.slots, slot = item % args.slots;
  if (slot >= keeping(args, b).length) return;
  const float* score = args.score + b * args.score_stride_b + slot;
  float sum = *score;
  for (int64_t h = 1; h < args.kv_heads; ++h) sum += score[h * args.score_stride_h];
  args.shared_score[item] = sum;
}

// One block per head of each prompt, or per prompt.
__global__ void __launch_bounds__(kSelectThreads, 1) evict_select(const EvictArgs args) {
  __shared__ SelectMemory memory;
  const Selection of = selection_of(args, blockIdx.x);
  put_others(args, of, threadIdx.x, kSelectThreads);
  if (of.rank > 0) write_slots(memory, of);
}

}  // namespace vlkv::cuda
