// Score's second pass: the attention that each key of one tile receives from all rows of its KV head, and the
// number of its pairs below the threshold. A block owns its keys, so sums have a fixed order and need no
// atomics.
#pragma once

#include "cuda/device/score_tiles.cuh"

namespace vlkv::cuda {

struct ColumnSums {
  float weight[8] = {};
  int32_t below = 0;
};

// How many of a thread's eight keys, of which the first is its own `key`, are among the `count` from there
// on.
__device__ __forceinline__ int32_t keys_within(int32_t count) {
  const int32_t pairs = count / 8 * 2, rest = count % 8;
  const int32_t within = pairs + (rest < 2 ? rest : 2);
  return count <= 0 ? 0 : within < 8 ? within : 8;
}

// Hides the pairs of keys past a row's last one: their weight is 0. As they will count as below the
// threshold, they are taken off beforehand.
__device__ __forceinline__ void hide_keys(ColumnSums& columns, Logits& logits, const RowFacts (&rows)[4],
                                          int32_t first_key) {
  const int32_t key = first_key + tile_key(static_cast<int>(threadIdx.x), 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int32_t behind = rows[i].last - key;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j / 2 * 8 + j % 2 > behind) logits.at(i, j) = -INFINITY;
    }
    columns.below -= 8 - keys_within(behind + 1);
  }
}

__device__ __forceinline__ void add_rows(ColumnSums& columns, const Logits& logits, const RowFacts (&rows)[4],
                                         float factor) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float logit = logits.at(i, j);
      columns.weight[j] += exp2_flushed(fmaf(logit, factor, -rows[i].scaled)) * rows[i].inverse;
      // The difference's sign: the limit is finite, and no logit of such a row is a NaN.
      columns.below += static_cast<int32_t>(__float_as_uint(logit - rows[i].limit) >> 31);
    }
  }
}

struct ColumnExchange {
  float weight[2][kTileKeys];
  int32_t below[kScoreThreads / kWarp];
};

// Grid: tiles of keys (fastest), then B * Hkv.
template <class Product>
__global__ void __launch_bounds__(kScoreThreads, kScoreBlocks) score_columns(const ScoreArgs args) {
  __shared__ ScoreMemory<Product, ColumnExchange> memory;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t key_tile = blockIdx.x % args.tiles, head = blockIdx.x / args.tiles;
  const auto row_blocks = static_cast<int32_t>(args.row_blocks);
  const int64_t b = head / args.kv_heads, h = head % args.kv_heads;
  const auto first_key = static_cast<int32_t>(key_tile * kTileKeys);
  const int32_t* const block_last = args.block_last + head * args.row_blocks;
  // The first row block from `row_block` on that attends to a key of this tile.
  const auto attending = [&](int32_t row_block) {
    while (row_block < row_blocks && block_last[row_block] < first_key) ++row_block;
    return row_block;
  };

  const RowFacts* const head_facts = args.row_facts + head * args.row_blocks * kTileRows;
  ColumnSums columns;
  for_each_tile<false>(
      memory.tiles, args, query_rows(args, b, h), key_rows(args, b, h), first_key, attending(0), row_blocks,
      [&](int32_t row_block) { return attending(row_block + 1); },
      [&](int32_t row_block, Logits& logits) {
        const RowFacts* const facts = head_facts + int64_t{row_block} * kTileRows;
        RowFacts rows[4];
        bool whole = true;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          rows[i] = facts[tile_row(thread, i)];
          whole = whole && rows[i].last >= first_key + kTileKeys - 1;
        }
        if (!__all_sync(kAllLanes, whole)) hide_keys(columns, logits, rows, first_key);
        add_rows(columns, logits, rows, args.factor);
      });

  // Lanes of one residue mod 4 have the same keys, and so do two warps.
  ColumnExchange& exchange = memory.exchange;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int distance = 4; distance <= 16; distance *= 2) {
      columns.weight[j] += __shfl_xor_sync(kAllLanes, columns.weight[j], distance);
    }
    if (thread % kWarp < 4) exchange.weight[thread / kWarp % 2][tile_key(thread, j)] = columns.weight[j];
  }
  columns.below = __reduce_add_sync(kAllLanes, columns.below);
  if (thread % kWarp == 0) exchange.below[thread / kWarp] = columns.below;
  __syncthreads();
  if (thread < kTileKeys && first_key + thread < args.slots) {
    float* const score = args.score + b * args.score_stride_b + h * args.score_stride_h + first_key + thread;
    const float sum = exchange.weight[0][thread] + exchange.weight[1][thread];
    *score = args.accumulate ? *score + sum : sum;
  }
  if (thread == 0) {
    int64_t below = 0;
    for (const int32_t of_warp : exchange.below) below += of_warp;
    // No weight is below a threshold of 0.
    args.tile_below[blockIdx.x] = args.log2_threshold > -INFINITY ? below : 0;
  }
}

}  // namespace vlkv::cuda
