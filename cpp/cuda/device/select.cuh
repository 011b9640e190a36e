// The k-th largest of many numbers: a radix search over their bits by one block, which Evict and Draw share.
#pragma once

#include "cuda/device/block.cuh"
#include "cuda/device/evict_args.cuh"
#include "cuda/device/loads.cuh"

namespace vlkv::cuda {

inline constexpr int kSelectThreads = 1024, kSelectWarps = kSelectThreads / kWarp;
// Attention scores fall into few bins, so neighbouring lanes count in separate copies.
inline constexpr int kCopies = 4;

struct SelectMemory {
  uint32_t bins[kBins * kCopies];
  int32_t warps[kSelectWarps];
  int32_t ties[kSelectWarps];
  uint32_t bin;         // the one that find_bin() found,
  int32_t rank, count;  // the rank among its keys, and how many they are
  uint32_t candidates;
};

// Calls use(slot, key) for slots first, first + step, ... below end.
template <class Use>
__device__ __forceinline__ void for_each_key(const float* score, uint32_t first, uint32_t end, uint32_t step,
                                             Use use) {
  for_each_element<4>(score, first, end, step,
                      [&](uint32_t slot, float value) { use(slot, ordered(__float_as_uint(value))); });
}

// Counts in memory.bins what for_each() gives: it is called with a function that takes a digit. kUsed: copies
// of a bin.
template <int kUsed, class ForEach>
__device__ __forceinline__ void count_digits(SelectMemory& memory, ForEach for_each) {
  const auto thread = static_cast<uint32_t>(threadIdx.x);
  for (uint32_t i = thread; i < kBins * kUsed; i += kSelectThreads) memory.bins[i] = 0;
  __syncthreads();
  for_each([&](uint32_t digit) { atomicAdd(&memory.bins[digit % kBins * kUsed + thread % kUsed], 1U); });
  __syncthreads();
}

// Finds the bin that has the `rank`-th highest key, from 1. Every thread of the block takes part; ends with a
// barrier.
template <int kUsed>
__device__ __forceinline__ void find_bin(SelectMemory& memory, int32_t rank) {
  const int thread = static_cast<int>(threadIdx.x);
  // Bins in descending order, two per thread.
  constexpr int kMine = kBins / kSelectThreads;
  static_assert(kMine == 2);
  int32_t count[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    count[i] = 0;
    for (int copy = 0; copy < kUsed; ++copy) {
      count[i] += static_cast<int32_t>(memory.bins[(kBins - 1 - thread * kMine - i) * kUsed + copy]);
    }
  }
  int32_t before = sum_before(count[0] + count[1], memory.warps);
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (before < rank && rank <= before + count[i]) {
      memory.bin = static_cast<uint32_t>(kBins - 1 - thread * kMine - i);
      memory.rank = rank - before;
      memory.count = count[i];
    }
    before += count[i];
  }
  __syncthreads();
}

// Returns the `rank`-th highest key of [begin, end), from 1, in every thread; `rank` becomes the rank among
// equal keys, which is the number of them to keep. Of the keys whose bits in `known` are those of
// `threshold`; the next digit begins at bit `shift`.
__device__ __forceinline__ uint32_t find_threshold(SelectMemory& memory, const float* score, uint32_t begin,
                                                   uint32_t end, int32_t& rank, uint32_t threshold = 0,
                                                   uint32_t known = 0, int shift = 32 - kDigitBits) {
  for (;; shift = shift > kDigitBits ? shift - kDigitBits : 0) {
    count_digits<kCopies>(memory, [&](auto count) {
      for_each_key(score, begin + threadIdx.x, end, kSelectThreads, [&](uint32_t, uint32_t key) {
        if ((key & known) == threshold) count(key >> shift);
      });
    });
    find_bin<kCopies>(memory, rank);
    // The last digit overlaps the previous one; the shared bits agree.
    threshold |= memory.bin << shift;
    known |= (uint32_t{kBins} - 1) << shift;
    rank = memory.rank;
    if (shift == 0) return threshold;
  }
}

}  // namespace vlkv::cuda
