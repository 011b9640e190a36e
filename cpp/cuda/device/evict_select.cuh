// Selects the slots to keep: a radix select on the scores' bits, one block per selection, on the scores' sum
// over heads if all heads share a selection.
#pragma once

#include "cuda/device/select.cuh"

namespace vlkv::cuda {

inline constexpr int kRankBits = 32 - kDigitBits;  // of a key, after its first digit
// Keys of one first digit that fit beside a histogram.
inline constexpr int kMostCandidates = kBins * (kCopies - 1);
static_assert(kSelectWarps <= 1 << kDigitBits, "a candidate's warp lies above its key");

// The slots of [begin, end) that a warp goes through. Slots have 32 bits: 64 took registers that ptxas
// spilled.
struct Stretch {
  uint32_t first, last;
};
__device__ __forceinline__ Stretch stretch_of_warp(uint32_t begin, uint32_t end) {
  const uint32_t each = ((end - begin) / (kSelectWarps * kWarp) + 1) * kWarp;
  const uint32_t offset = threadIdx.x / kWarp * each;
  const uint32_t first = offset < end - begin ? begin + offset : end;
  return {first, each < end - first ? first + each : end};
}

// Calls use(slot, key, valid) for a stretch's slots, with all lanes of the warp at a time; four loads are in
// flight.
template <class Use>
__device__ __forceinline__ void for_each_in_step(const float* score, const Stretch& stretch, Use use) {
  const uint32_t lane = threadIdx.x % kWarp;
  for (uint32_t slot = stretch.first + lane; slot - lane < stretch.last; slot += 4 * kWarp) {
    uint32_t key[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t at = slot + i * kWarp;
      key[i] = at < stretch.last ? ordered(__float_as_uint(score[at])) : 0;
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) use(slot + i * kWarp, key[i], slot + i * kWarp < stretch.last);
  }
}

// Counts, for each warp's stretch, the keys above the threshold and those equal to it.
__device__ __forceinline__ void count_stretches(SelectMemory& memory, const float* score,
                                                const Stretch& stretch, uint32_t threshold) {
  const int thread = static_cast<int>(threadIdx.x);
  int32_t above = 0, equal = 0;
  for_each_key(score, stretch.first + threadIdx.x % kWarp, stretch.last, kWarp, [&](uint32_t, uint32_t key) {
    above += key > threshold ? 1 : 0;
    equal += key == threshold ? 1 : 0;
  });
  above = __reduce_add_sync(kAllLanes, above);
  equal = __reduce_add_sync(kAllLanes, equal);
  if (thread % kWarp == 0) {
    memory.warps[thread / kWarp] = above;
    memory.ties[thread / kWarp] = equal;
  }
}

// The same, and the threshold, from the keys of one first digit, if they fit into shared memory: the other
// digits and the counts then need no further pass over the scores. `rank` is the rank among these keys, and
// becomes that among equal ones.
__device__ __forceinline__ uint32_t find_among_candidates(SelectMemory& memory, const float* score,
                                                          const Stretch& stretch, uint32_t first_digit,
                                                          int32_t& rank) {
  constexpr uint32_t kRankMask = (1U << kRankBits) - 1;
  constexpr int kLow = kRankBits - kDigitBits;
  const auto thread = static_cast<uint32_t>(threadIdx.x);
  const uint32_t warp = thread / kWarp, lane = thread % kWarp;
  uint32_t* const candidates = memory.bins + kBins;
  if (thread == 0) memory.candidates = 0;
  __syncthreads();
  int32_t above = 0;
  for_each_in_step(score, stretch, [&](uint32_t, uint32_t key, bool valid) {
    const uint32_t digit = key >> kRankBits;
    above += valid && digit > first_digit ? 1 : 0;
    const bool candidate = valid && digit == first_digit;
    const uint32_t lanes = __ballot_sync(kAllLanes, candidate);
    if (lanes == 0) return;
    const uint32_t begin =
        lane == 0 ? atomicAdd(&memory.candidates, static_cast<uint32_t>(__popc(lanes))) : 0;
    const auto base = static_cast<uint32_t>(__reduce_max_sync(kAllLanes, static_cast<int32_t>(begin)));
    if (candidate) {
      candidates[base + static_cast<uint32_t>(__popc(lanes & ((1U << lane) - 1)))] =
          warp << kRankBits | (key & kRankMask);
    }
  });
  above = __reduce_add_sync(kAllLanes, above);
  __syncthreads();
  const uint32_t count = memory.candidates;
  count_digits<1>(memory, [&](auto add) {
    for (uint32_t i = thread; i < count; i += kSelectThreads) add(candidates[i] >> kLow);
  });
  find_bin<1>(memory, rank);
  const uint32_t second = memory.bin;
  rank = memory.rank;
  count_digits<1>(memory, [&](auto add) {
    for (uint32_t i = thread; i < count; i += kSelectThreads) {
      if ((candidates[i] & kRankMask) >> kLow == second) add(candidates[i] & ((1U << kLow) - 1));
    }
  });
  find_bin<1>(memory, rank);
  const uint32_t low = second << kLow | memory.bin;
  rank = memory.rank;
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

// Writes the `rank` slots of [begin, end) with the highest keys, ascending; of equal keys the first ones.
// Each warp has a stretch of slots, whose kept ones are counted before any is written.
__device__ __forceinline__ void write_slots(SelectMemory& memory, const float* score, uint32_t begin,
                                            uint32_t end, int32_t rank, int32_t* out) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const Stretch stretch = stretch_of_warp(begin, end);
  count_digits<kCopies>(memory, [&](auto add) {
    for_each_key(score, begin + threadIdx.x, end, kSelectThreads,
                 [&](uint32_t, uint32_t key) { add(key >> kRankBits); });
  });
  find_bin<kCopies>(memory, rank);
  const uint32_t first_digit = memory.bin;
  uint32_t threshold = first_digit << kRankBits;
  int32_t ties = memory.rank;
  if (memory.count <= kMostCandidates) {
    threshold = find_among_candidates(memory, score, stretch, first_digit, ties);
  } else {
    threshold = find_threshold(memory, score, begin, end, ties, threshold, ~uint32_t{0} << kRankBits,
                               kRankBits - kDigitBits);
    count_stretches(memory, score, stretch, threshold);
  }
  __syncthreads();
  int32_t above_before = 0, equal_before = 0;
  for (int other = 0; other < warp; ++other) {
    above_before += memory.warps[other];
    equal_before += memory.ties[other];
  }
  for_each_in_step(score, stretch, [&](uint32_t slot, uint32_t key, bool valid) {
    const bool is_above = valid && key > threshold, is_equal = valid && key == threshold;
    const uint32_t lanes_above = __ballot_sync(kAllLanes, is_above);
    const uint32_t lanes_equal = __ballot_sync(kAllLanes, is_equal);
    const uint32_t lower = (1U << lane) - 1;
    const int32_t equal_here = equal_before + __popc(lanes_equal & lower);
    const int32_t above_here = above_before + __popc(lanes_above & lower);
    if (is_above || (is_equal && equal_here < ties)) {
      out[above_here + (equal_here < ties ? equal_here : ties)] = static_cast<int32_t>(slot);
    }
    above_before += __popc(lanes_above);
    equal_before += __popc(lanes_equal);
  });
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
  const int64_t selections = args.per_head ? args.kv_heads : 1;
  const int64_t b = blockIdx.x / selections, h = blockIdx.x % selections;
  const int64_t thread = threadIdx.x;
  const Keeping k = keeping(args, b);
  int32_t* const out = args.position + b * args.position_stride_b + h * args.position_stride_h;
  const int64_t before = k.all() ? k.keep : k.sinks;
  for (int64_t i = thread; i < before; i += kSelectThreads) out[i] = static_cast<int32_t>(i);
  if (!k.all()) {
    const float* const score = args.per_head ? args.score + b * args.score_stride_b + h * args.score_stride_h
                                             : args.shared_score + b * args.slots;
    for (int64_t i = thread; i < k.recent; i += kSelectThreads) {
      out[k.keep - k.recent + i] = static_cast<int32_t>(k.length - k.recent + i);
    }
    const auto rank = static_cast<int32_t>(k.keep - k.sinks - k.recent);
    if (rank > 0) {
      const auto begin = static_cast<uint32_t>(k.sinks), end = static_cast<uint32_t>(k.length - k.recent);
      write_slots(memory, score, begin, end, rank, out + k.sinks);
    }
  }
  if (args.zero_tail) {
    for (int64_t i = k.keep + thread; i < args.capacity; i += kSelectThreads) out[i] = -1;
  }
  if (args.per_head) return;
  __syncthreads();
  const int64_t written = args.zero_tail ? args.capacity : k.keep;
  for (int64_t other = 1; other < args.kv_heads; ++other) {
    for (int64_t i = thread; i < written; i += kSelectThreads)
      out[other * args.position_stride_h + i] = out[i];
  }
}

}  // namespace vlkv::cuda
