// The k-th largest of many numbers: a radix search over their bits by one block, which Evict and Draw share.
#pragma once

#include "cuda/device/block.cuh"
#include "cuda/device/evict_args.cuh"

namespace vlkv::cuda {

inline constexpr int kSelectThreads = 1024, kSelectWarps = kSelectThreads / kWarp;
inline constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
// Attention scores fall into few bins, so neighbouring lanes count in separate copies.
inline constexpr int kCopies = 4;

struct SelectMemory {
  uint32_t bins[kBins * kCopies];
  int32_t warps[kSelectWarps];
  int32_t ties[kSelectWarps];
  uint32_t bin;
  int32_t rank;
};

// Calls use(slot, key) for slots begin + thread, + step, + 2 * step, ...; four loads are in flight at a time.
template <class Use>
__device__ __forceinline__ void for_each_key(const float* score, int64_t begin, int64_t end, int64_t thread,
                                             int64_t step, Use use) {
  int64_t slot = begin + thread;
  for (; slot + 3 * step < end; slot += 4 * step) {
    uint32_t key[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) key[i] = ordered(__float_as_uint(score[slot + i * step]));
#pragma unroll
    for (int i = 0; i < 4; ++i) use(slot + i * step, key[i]);
  }
  for (; slot < end; slot += step) use(slot, ordered(__float_as_uint(score[slot])));
}

// Returns the `rank`-th highest key of [begin, end), from 1, in every thread. `rank` becomes the rank among
// equal keys, which is the number of them to keep.
__device__ __forceinline__ uint32_t find_threshold(SelectMemory& memory, const float* score, int64_t begin,
                                                   int64_t end, int32_t& rank) {
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t threshold = 0, known = 0;
  for (int shift = 32 - kDigitBits;; shift = shift > kDigitBits ? shift - kDigitBits : 0) {
    for (int i = thread; i < kBins * kCopies; i += kSelectThreads) memory.bins[i] = 0;
    __syncthreads();
    for_each_key(score, begin, end, thread, kSelectThreads, [&](int64_t, uint32_t key) {
      if ((key & known) == threshold) {
        atomicAdd(&memory.bins[(key >> shift) % kBins * kCopies + static_cast<uint32_t>(thread) % kCopies],
                  1U);
      }
    });
    __syncthreads();
    // Bins in descending order, two per thread.
    constexpr int kMine = kBins / kSelectThreads;
    static_assert(kMine == 2);
    int32_t count[kMine];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      count[i] = 0;
      for (int copy = 0; copy < kCopies; ++copy) {
        count[i] += static_cast<int32_t>(memory.bins[(kBins - 1 - thread * kMine - i) * kCopies + copy]);
      }
    }
    int32_t before = sum_before(count[0] + count[1], memory.warps);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (before < rank && rank <= before + count[i]) {
        memory.bin = static_cast<uint32_t>(kBins - 1 - thread * kMine - i);
        memory.rank = rank - before;
      }
      before += count[i];
    }
    __syncthreads();
    // The last digit overlaps the previous one; the shared bits agree.
    threshold |= memory.bin << shift;
    known |= (uint32_t{kBins} - 1) << shift;
    rank = memory.rank;
    if (shift == 0) return threshold;
  }
}

}  // namespace vlkv::cuda
