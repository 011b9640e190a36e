// What one block and several blocks of a selection share: which slots a selection is about, the search among
// the keys of one first digit, and the writing of kept slots.
#pragma once

#include "cuda/device/select.cuh"

namespace vlkv::cuda {

static_assert(kSelectWarps == kWarp, "a warp reduces what all warps counted");

// A head of a prompt, or a prompt whose heads share a selection: `rank` slots of [begin, end) are chosen by
// their scores.
struct Selection {
  Keeping k;
  const float* score;
  int32_t* out;
  int64_t stride;
  int32_t heads;
  uint32_t begin, end;
  int32_t rank;

  // Writes place i of every head of the selection.
  __device__ __forceinline__ void put(int64_t i, int64_t slot) const {
    int32_t* to = out + i;
#pragma unroll 1
    for (int32_t head = 0; head < heads; ++head, to += stride) *to = static_cast<int32_t>(slot);
  }
};

__device__ __forceinline__ Selection selection_of(const EvictArgs& args, int64_t index) {
  const int64_t selections = args.per_head ? args.kv_heads : 1;
  const int64_t b = index / selections, h = index % selections;
  const Keeping k = keeping(args, b);
  return {k,
          args.per_head ? args.score + b * args.score_stride_b + h * args.score_stride_h
                        : args.shared_score + b * args.slots,
          args.position + b * args.position_stride_b + h * args.position_stride_h,
          args.position_stride_h,
          args.per_head ? 1 : static_cast<int32_t>(args.kv_heads),
          static_cast<uint32_t>(k.sinks),
          static_cast<uint32_t>(k.length - k.recent),
          k.all() ? 0 : static_cast<int32_t>(k.keep - k.sinks - k.recent)};
}

// Writes the places that no score decides, first, first + step, ... of them: sinks, recent slots, the tail.
__device__ __forceinline__ void put_others(const EvictArgs& args, const Selection& of, int64_t first,
                                           int64_t step) {
  const Keeping& k = of.k;
  const int64_t before = k.all() ? k.keep : k.sinks, recent = k.all() ? 0 : k.recent;
  for (int64_t i = first; i < before; i += step) of.put(i, i);
  for (int64_t i = first; i < recent; i += step) of.put(k.keep - recent + i, k.length - recent + i);
  if (!args.zero_tail) return;
  for (int64_t i = k.keep + first; i < args.capacity; i += step) of.put(i, -1);
}

// The index-th of `count` stretches of [begin, end), of whole warps. Slots have 32 bits: 64 took registers
// that ptxas spilled.
struct Stretch {
  uint32_t first, last;
};
__device__ __forceinline__ Stretch stretch_of(uint32_t begin, uint32_t end, uint32_t index, uint32_t count) {
  const uint32_t each = ((end - begin) / (count * kWarp) + 1) * kWarp;
  const uint32_t offset = index * each;
  const uint32_t first = offset < end - begin ? begin + offset : end;
  return {first, each < end - first ? first + each : end};
}
__device__ __forceinline__ Stretch stretch_of_warp(uint32_t begin, uint32_t end) {
  return stretch_of(begin, end, threadIdx.x / kWarp, kSelectWarps);
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

// Appends a warp's keys of one first digit to `candidates` at memory.candidates: their other bits, with
// `mark` above these. Returns how many of its keys have a higher first digit.
__device__ __forceinline__ int32_t append_candidates(SelectMemory& memory, const float* score,
                                                     const Stretch& stretch, uint32_t first_digit,
                                                     uint32_t mark, uint32_t* candidates) {
  constexpr uint32_t kRankMask = (1U << kRankBits) - 1;
  const uint32_t lane = threadIdx.x % kWarp;
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
          mark << kRankBits | (key & kRankMask);
    }
  });
  return __reduce_add_sync(kAllLanes, above);
}

// The `rank`-th highest of the candidates' bits after the first digit, from 1; `rank` becomes the rank among
// equal ones. kUsed: copies of a bin. Ends with a barrier.
template <int kUsed>
__device__ __forceinline__ uint32_t find_rest(SelectMemory& memory, const uint32_t* candidates,
                                              uint32_t count, int32_t& rank) {
  constexpr int kLow = kRankBits - kDigitBits;
  const uint32_t first = threadIdx.x, step = kSelectThreads;
  count_digits<kUsed>(memory, [&](auto add) {
    for_each_element<4>(candidates, first, count, step, [&](uint32_t, uint32_t key) { add(key >> kLow); });
  });
  find_bin<kUsed>(memory, rank);
  const uint32_t second = memory.bin;
  rank = memory.rank;
  count_digits<kUsed>(memory, [&](auto add) {
    for_each_element<4>(candidates, first, count, step, [&](uint32_t, uint32_t key) {
      if ((key >> kLow) % kBins == second) add(key & ((1U << kLow) - 1));
    });
  });
  find_bin<kUsed>(memory, rank);
  rank = memory.rank;
  return second << kLow | memory.bin;
}

// Writes the kept slots of each warp's stretch, ascending: those above the threshold, and the first `ties` of
// those equal to it. memory.warps and memory.ties count what each warp's stretch has of both, above_before
// and equal_before what comes before all of them. Begins with a barrier.
__device__ __forceinline__ void put_kept(const SelectMemory& memory, const Selection& of,
                                         const Stretch& stretch, uint32_t threshold, int32_t ties,
                                         int32_t above_before, int32_t equal_before) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  __syncthreads();
  for (int other = 0; other < warp; ++other) {
    above_before += memory.warps[other];
    equal_before += memory.ties[other];
  }
  for_each_in_step(of.score, stretch, [&](uint32_t slot, uint32_t key, bool valid) {
    const bool is_above = valid && key > threshold, is_equal = valid && key == threshold;
    const uint32_t lanes_above = __ballot_sync(kAllLanes, is_above);
    const uint32_t lanes_equal = __ballot_sync(kAllLanes, is_equal);
    const uint32_t lower = (1U << lane) - 1;
    const int32_t equal_here = equal_before + __popc(lanes_equal & lower);
    const int32_t above_here = above_before + __popc(lanes_above & lower);
    if (is_above || (is_equal && equal_here < ties)) {
      of.put(of.k.sinks + above_here + (equal_here < ties ? equal_here : ties), slot);
    }
    above_before += __popc(lanes_above);
    equal_before += __popc(lanes_equal);
  });
}

}  // namespace vlkv::cuda
