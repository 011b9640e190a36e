// Score's small kernels: they combine rows' results between the passes, and prompts' counts after them.
#pragma once

#include "cuda/device/block.cuh"
#include "cuda/device/score_rows.cuh"

namespace vlkv::cuda {

// One warp per row block: maximum and sum over all splits, in order. A row whose sum is not a positive number
// is ignored from here on.
__global__ void __launch_bounds__(kWarp) score_combine(const ScoreArgs args) {
  const int64_t row_block = blockIdx.x % args.row_blocks, head = blockIdx.x / args.row_blocks;
  int64_t pairs = 0;
  int32_t longest = -1;
  for (int row = static_cast<int>(threadIdx.x); row < kTileRows; row += kWarp) {
    const int64_t r = row_block * kTileRows + row;
    RunningSum total;
    for (int64_t split = 0; r < args.group_rows && split < args.splits; ++split) {
      const int64_t at = (head * args.splits + split) * args.group_rows + r;
      RunningSum part;
      part.maximum = args.split_maximum[at];
      part.sum = args.split_sum[at];
      total.add(part, args.factor);
    }
    const int32_t last = total.sum > 0.0F ? last_key(args, head / args.kv_heads, r) : -1;
    RowFacts facts{0.0F, -kLargest, 0.0F, last};
    if (last >= 0) {
      facts.scaled = scaled_maximum(total.maximum, args.factor);
      facts.limit = fmaxf(total.maximum + args.log2_threshold / args.factor, -kLargest);
      facts.inverse = 1.0F / total.sum;
    }
    args.row_facts[int64_t{blockIdx.x} * kTileRows + row] = facts;
    pairs += int64_t{last} + 1;
    longest = last > longest ? last : longest;
  }
  pairs = sum_of_lanes(pairs);
  longest = __reduce_max_sync(kAllLanes, longest);
  if (threadIdx.x == 0) {
    args.block_pairs[blockIdx.x] = pairs;
    args.block_last[blockIdx.x] = longest;
  }
}

inline constexpr int kCountThreads = 256;

// Zeroes all scores, for calls without rows. One thread per element of [B, Hkv, C].
__global__ void __launch_bounds__(kCountThreads) score_clear(const ScoreArgs args) {
  const int64_t item = int64_t{blockIdx.x} * kCountThreads + threadIdx.x;
  if (item >= args.batch * args.kv_heads * args.slots) return;
  const int64_t head = item / args.slots;
  args.score[head / args.kv_heads * args.score_stride_b + head % args.kv_heads * args.score_stride_h +
             item % args.slots] = 0.0F;
}

// One block per prompt: pairs, below and sparsity from the counts of row blocks and tiles.
__global__ void __launch_bounds__(kCountThreads) score_counts(const ScoreArgs args) {
  constexpr int kWarps = kCountThreads / kWarp;
  __shared__ int64_t sums[2][kWarps];
  const int64_t b = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const auto share = [&](const int64_t* counts, int64_t each) {
    int64_t sum = 0;
    for (int64_t i = thread; i < args.kv_heads * each; i += kCountThreads) {
      sum += counts[b * args.kv_heads * each + i];
    }
    return sum_of_lanes(sum);
  };
  const int64_t of_pairs = share(args.block_pairs, args.row_blocks),
                of_below = share(args.tile_below, args.tiles);
  if (thread % kWarp == 0) {
    sums[0][thread / kWarp] = of_pairs;
    sums[1][thread / kWarp] = of_below;
  }
  __syncthreads();
  if (thread != 0) return;
  int64_t pairs = args.accumulate && args.pairs != nullptr ? args.pairs[b] : 0;
  int64_t below = args.accumulate && args.below != nullptr ? args.below[b] : 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    pairs += sums[0][warp];
    below += sums[1][warp];
  }
  if (args.pairs != nullptr) args.pairs[b] = pairs;
  if (args.below != nullptr) args.below[b] = below;
  if (args.sparsity != nullptr) {
    args.sparsity[b] =
        pairs > 0 ? static_cast<float>(static_cast<double>(below) / static_cast<double>(pairs)) : 0.0F;
  }
}

}  // namespace vlkv::cuda
