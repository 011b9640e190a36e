// Draw: a block for each prompt. The steps and their order are the host's: temperature, top-k, top-p, and
// then the first id up to which the weights sum to more than a random share. All sums are of integers, so
// that neither the order of threads nor of atomics shows in the token.
#pragma once

#include "cuda/device/draw_args.cuh"
#include "cuda/device/draw_weight.cuh"
#include "cuda/device/pick_key.cuh"
#include "cuda/device/select.cuh"

namespace vlkv::cuda {

inline constexpr int kDrawThreads = kSelectThreads, kDrawWarps = kSelectWarps;
inline constexpr int kSumCopies = 2;
inline constexpr int kLogitLoads = 4;  // in flight for each thread
static_assert(kSumCopies * 2 == kCopies, "sums of 64 bits lie in the bins of the counts");

struct DrawMemory {
  SelectMemory select;
  uint64_t warps[kDrawWarps];
  uint64_t below;
  DrawWeight weight;
};

// The whole part of `share` of `total`, in [0, total - 1].
__device__ __forceinline__ uint64_t share_of(uint64_t total, double share) {
  const double part = share * static_cast<double>(total);
  if (!(part > 0)) return 0;
  if (part >= static_cast<double>(total)) return total - 1;
  const auto whole = static_cast<uint64_t>(part);
  return whole < total ? whole : total - 1;
}

__device__ __forceinline__ uint64_t wide_sum_of_lanes(uint64_t value) {
  return static_cast<uint64_t>(sum_of_lanes(static_cast<int64_t>(value)));
}

__device__ __forceinline__ uint32_t logit_key(float logit) { return ordered(__float_as_uint(logit)); }
__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key ^ 0x80000000U : ~key);
}

// The first id up to which weigh(id, logit) sums to more than limit(sum of all), which is below that sum.
// Every thread of the block takes part and returns it.
template <class Weigh, class Limit>
__device__ __forceinline__ uint32_t place(DrawMemory& memory, const float* row, uint32_t vocab, Weigh weigh,
                                          Limit limit) {
  const uint32_t thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  uint32_t begin = 0, end = vocab;
  uint64_t left = 0;
  for (bool first = true;; first = false) {
    // Each warp has a stretch of ids; the one that exceeds the limit is divided anew.
    const uint32_t stretch = ((end - begin - 1) / (kDrawWarps * kWarp) + 1) * kWarp;
    const uint32_t from = begin + warp * stretch, to = from + stretch < end ? from + stretch : end;
    uint64_t sum = 0;
    for_each_element<kLogitLoads>(row, from + lane, to, uint32_t{kWarp},
                                  [&](uint32_t id, float logit) { sum += weigh(id, logit); });
    sum = wide_sum_of_lanes(sum);
    __syncthreads();
    if (lane == 0) memory.warps[warp] = sum;
    __syncthreads();
    if (first) {
      uint64_t total = 0;
      for (int other = 0; other < kDrawWarps; ++other) total += memory.warps[other];
      left = limit(total);
    }
    uint32_t found = 0;
    for (; found + 1 < kDrawWarps && left >= memory.warps[found]; ++found) left -= memory.warps[found];
    begin += found * stretch;
    end = begin + stretch < end ? begin + stretch : end;
    if (stretch == kWarp) break;
  }
  const uint64_t mine = begin + lane < end ? weigh(begin + lane, row[begin + lane]) : 0;
  const uint32_t over = __ballot_sync(kAllLanes, running_sum_of_lanes(mine) > left);
  return begin + static_cast<uint32_t>(__popc((over & (0U - over)) - 1));
}

// Adds to a sum of 64 bits in two halves. A carry is seen by the thread whose addition makes it.
__device__ __forceinline__ void add_wide(uint32_t* low, uint32_t* high, uint64_t value) {
  const auto part = static_cast<uint32_t>(value);
  const uint32_t before = atomicAdd(low, part);
  const uint32_t up = static_cast<uint32_t>(value >> 32) + (before + part < before ? 1U : 0U);
  if (up != 0) atomicAdd(high, up);
}

struct Nucleus {
  uint32_t lowest;   // the key of its smallest logit
  uint64_t dropped;  // how many tokens with exactly that logit stay out, those with the lowest ids
};

// The top-p set of the tokens whose key is at least `least`: a radix search, from the smallest logit up, for
// the key up to which the weights sum to more than 1 - top_p of all.
__device__ __forceinline__ Nucleus find_nucleus(DrawMemory& memory, const float* row, uint32_t vocab,
                                                uint32_t least, const DrawWeight& weight, double top_p) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  uint32_t key_found = 0, known = 0;
  uint64_t left = 0;
  uint32_t* const low = memory.select.bins;
  uint32_t* const high = low + kBins * kSumCopies;
  for (int shift = 32 - kDigitBits;; shift = shift > kDigitBits ? shift - kDigitBits : 0) {
    for (int i = thread; i < kBins * kCopies; i += kDrawThreads) memory.select.bins[i] = 0;
    __syncthreads();
    for_each_element<kLogitLoads>(
        row, static_cast<uint32_t>(thread), vocab, uint32_t{kDrawThreads}, [&](uint32_t, float logit) {
          const uint32_t key = logit_key(logit);
          if (key < least || (key & known) != key_found) return;
          const uint64_t mine = weight.of(logit);
          const uint32_t at =
              (key >> shift) % kBins * kSumCopies + static_cast<uint32_t>(thread) % kSumCopies;
          if (mine != 0) add_wide(low + at, high + at, mine);
        });
    __syncthreads();
    // Bins in ascending order, two per thread.
    constexpr int kMine = kBins / kDrawThreads;
    static_assert(kMine == 2);
    uint64_t sum[kMine];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      sum[i] = 0;
      for (int copy = 0; copy < kSumCopies; ++copy) {
        const int at = (thread * kMine + i) * kSumCopies + copy;
        sum[i] += uint64_t{high[at]} << 32 | low[at];
      }
    }
    const uint64_t running = running_sum_of_lanes(sum[0] + sum[1]);
    if (lane == kWarp - 1) memory.warps[warp] = running;
    __syncthreads();
    uint64_t before = running - sum[0] - sum[1], total = 0;
    for (int other = 0; other < kDrawWarps; ++other) {
      before += other < warp ? memory.warps[other] : 0;
      total += memory.warps[other];
    }
    if (known == 0) left = share_of(total, 1 - top_p);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (before <= left && left < before + sum[i]) {
        memory.select.bin = static_cast<uint32_t>(thread * kMine + i);
        memory.below = before;
      }
      before += sum[i];
    }
    __syncthreads();
    key_found |= memory.select.bin << shift;
    known |= (uint32_t{kBins} - 1) << shift;
    left -= memory.below;
    if (shift == 0) break;
  }
  return {key_found, left / weight.of(logit_of(key_found))};
}

__global__ void __launch_bounds__(kDrawThreads, 1) draw(const DrawArgs args) {
  __shared__ DrawMemory memory;
  const auto vocab = static_cast<uint32_t>(args.vocab);
  const float* const row = args.logits + int64_t{blockIdx.x} * args.vocab;
  const double* const settings = args.settings + int64_t{blockIdx.x} * 4;
  uint64_t top = 0;
  for_each_element<kLogitLoads>(row, uint32_t{threadIdx.x}, vocab, uint32_t{kDrawThreads},
                                [&](uint32_t id, float logit) { top = larger(top, pick_key(logit, id)); });
  top = largest_of_lanes(top);
  if (threadIdx.x % kWarp == 0) memory.warps[threadIdx.x / kWarp] = top;
  __syncthreads();
  top = largest_of_lanes(memory.warps[threadIdx.x % kWarp]);
  uint32_t token = 0xffffffffU - static_cast<uint32_t>(top);
  const float best = row[token];
  const double temperature = settings[0], top_k = settings[1], top_p = settings[2], uniform = settings[3];
  if (temperature > 0 && (__float_as_uint(best) & 0x7fffffffU) < 0x7f800000U) {
    if (threadIdx.x == 0) memory.weight = draw_weight(best, temperature);
    __syncthreads();
    const DrawWeight weight = memory.weight;
    uint32_t least = 0, first_tie = 0;
    if (top_k >= 1 && top_k < static_cast<double>(vocab)) {
      auto rank = static_cast<int32_t>(top_k);
      least = find_threshold(memory.select, row, 0, vocab, rank);
    }
    if (top_p < 1) {
      const Nucleus nucleus = find_nucleus(memory, row, vocab, least, weight, top_p);
      least = nucleus.lowest;
      if (nucleus.dropped != 0) {
        first_tie = place(
            memory, row, vocab,
            [&](uint32_t, float logit) { return uint64_t{logit_key(logit) == least ? 1U : 0U}; },
            [&](uint64_t) { return nucleus.dropped; });
      }
    }
    token = place(
        memory, row, vocab,
        [&](uint32_t id, float logit) {
          const uint32_t key = logit_key(logit);
          return key > least || (key == least && id >= first_tie) ? weight.of(logit) : 0;
        },
        [&](uint64_t total) { return share_of(total, uniform); });
  }
  if (threadIdx.x != 0) return;
  args.token[blockIdx.x] = static_cast<int32_t>(token);
  args.best[blockIdx.x] = best;
}

}  // namespace vlkv::cuda
