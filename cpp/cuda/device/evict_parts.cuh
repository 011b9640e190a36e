// The selection of evict_select.cuh by several blocks, for long caches: each has a part of the slots. Three
// launches, and what one writes is read by the next: no block waits for another, no counter has to be zero
// beforehand, and blocks add nothing to each other's numbers.
#pragma once

#include "cuda/device/evict_slots.cuh"

namespace vlkv::cuda {

struct Part {
  int64_t selection;
  uint32_t index;
};
__device__ __forceinline__ Part part_of(const EvictArgs& args) {
  const auto parts = static_cast<uint32_t>(args.parts);
  return {blockIdx.x / parts, blockIdx.x % parts};
}
__device__ __forceinline__ Stretch stretch_of_part(const EvictArgs& args, const Selection& of,
                                                   uint32_t index) {
  return stretch_of(of.begin, of.end, index, static_cast<uint32_t>(args.parts));
}

// Counts the first digits of each part's keys.
__global__ void __launch_bounds__(kSelectThreads, 1) evict_count(const EvictArgs args) {
  __shared__ SelectMemory memory;
  const Part part = part_of(args);
  const Selection of = selection_of(args, part.selection);
  if (of.rank <= 0) return;
  const Stretch own = stretch_of_part(args, of, part.index);
  count_digits<kCopies>(memory, [&](auto add) {
    for_each_key(of.score, own.first + threadIdx.x, own.last, kSelectThreads,
                 [&](uint32_t, uint32_t key) { add(key >> kRankBits); });
  });
  uint32_t* const bins = args.part_bins + int64_t{blockIdx.x} * kBins;
  for (uint32_t bin = threadIdx.x; bin < kBins; bin += kSelectThreads) {
    uint32_t sum = 0;
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) sum += memory.bins[bin * kCopies + copy];
    bins[bin] = sum;
  }
}

// Each block finds the first digit of the lowest key to keep, and puts its part's keys that have it behind
// those of the parts before.
__global__ void __launch_bounds__(kSelectThreads, 1) evict_collect(const EvictArgs args) {
  __shared__ SelectMemory memory;
  const Part part = part_of(args);
  const Selection of = selection_of(args, part.selection);
  if (of.rank <= 0) return;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const auto parts = static_cast<uint32_t>(args.parts);
  const uint32_t* const bins = args.part_bins + part.selection * args.parts * kBins;
  for (uint32_t bin = threadIdx.x; bin < kBins; bin += kSelectThreads) {
    uint32_t sum = 0;
#pragma unroll 4
    for (uint32_t other = 0; other < parts; ++other) sum += bins[other * kBins + bin];
    memory.bins[bin] = sum;
  }
  __syncthreads();
  find_bin<1>(memory, of.rank);
  const uint32_t first_digit = memory.bin;
  const int32_t rank = memory.rank;
  if (warp == 0) {
    const uint32_t before = lane < part.index ? bins[lane * kBins + first_digit] : 0;
    const int32_t begin = __reduce_add_sync(kAllLanes, static_cast<int32_t>(before));
    if (lane == 0) memory.candidates = static_cast<uint32_t>(begin);
  }
  __syncthreads();
  const Stretch own = stretch_of_part(args, of, part.index);
  const int32_t above = append_candidates(memory, of.score, stretch_of_warp(own.first, own.last), first_digit,
                                          0, args.candidates + part.selection * args.slots);
  if (lane == 0) memory.warps[warp] = above;
  __syncthreads();
  if (warp != 0) return;
  const int32_t of_part = __reduce_add_sync(kAllLanes, memory.warps[lane]);
  if (lane == 0) args.part_facts[blockIdx.x] = {first_digit, rank, of_part, memory.candidates};
}

// Each block finds the lowest key to keep among the candidates, counts what the parts before keep, and writes
// its own part's slots.
__global__ void __launch_bounds__(kSelectThreads, 1) evict_write(const EvictArgs args) {
  __shared__ SelectMemory memory;
  const Part part = part_of(args);
  const Selection of = selection_of(args, part.selection);
  const int64_t step = args.parts * kSelectThreads;
  put_others(args, of, int64_t{part.index} * kSelectThreads + threadIdx.x, step);
  if (of.rank <= 0) return;
  const uint32_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const EvictPart* const facts = args.part_facts + part.selection * args.parts;
  const uint32_t* const candidates = args.candidates + part.selection * args.slots;
  int32_t ties = facts->rank;
  const uint32_t low = find_rest<kCopies>(memory, candidates, facts[args.parts - 1].end, ties);
  int32_t above = 0, equal = 0;
  for_each_element<4>(candidates, uint32_t{threadIdx.x}, part.index == 0 ? 0 : facts[part.index - 1].end,
                      uint32_t{kSelectThreads}, [&](uint32_t, uint32_t key) {
                        above += key > low ? 1 : 0;
                        equal += key == low ? 1 : 0;
                      });
  above = __reduce_add_sync(kAllLanes, above);
  equal = __reduce_add_sync(kAllLanes, equal);
  if (lane == 0) {
    memory.warps[warp] = above;
    memory.ties[warp] = equal;
  }
  __syncthreads();
  // Of the parts before: the candidates that all warps counted, and the keys of higher first digits.
  above = __reduce_add_sync(kAllLanes, memory.warps[lane] + (lane < part.index ? facts[lane].above : 0));
  equal = __reduce_add_sync(kAllLanes, memory.ties[lane]);
  __syncthreads();
  const Stretch own = stretch_of_part(args, of, part.index);
  const Stretch mine = stretch_of_warp(own.first, own.last);
  const uint32_t threshold = facts->first_digit << kRankBits | low;
  count_stretches(memory, of.score, mine, threshold);
  put_kept(memory, of, mine, threshold, ties, above, equal);
}

}  // namespace vlkv::cuda
