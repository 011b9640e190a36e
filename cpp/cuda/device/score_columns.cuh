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

// `first_key` is the tile's; rows r of the thread are those of row block `row_block` of head `head`.
template <bool kMasked>
__device__ __forceinline__ void add_rows(ColumnSums& columns, const Logits& logits, const ScoreArgs& args,
                                         int64_t row_at, int64_t rows_left, const int32_t (&last)[4],
                                         int64_t first_key, float below_maximum) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = tile_row(thread, i);
    if (row >= rows_left) continue;
    const float maximum = args.row_maximum[row_at + row], inverse = args.row_inverse[row_at + row];
    const float scaled = scaled_maximum(maximum, args.factor), limit = maximum + below_maximum;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float logit = logits.at(i, j);
      const float weight = exp2_flushed(fmaf(logit, args.factor, -scaled)) * inverse;
      const bool attended = !kMasked || first_key + tile_key(thread, j) <= last[i];
      columns.weight[j] += attended ? weight : 0.0F;
      columns.below += attended && logit < limit ? 1 : 0;
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
  const int64_t b = head / args.kv_heads, h = head % args.kv_heads;
  const int64_t first_key = key_tile * kTileKeys;
  const int32_t* const block_last = args.block_last + head * args.row_blocks;
  // The first row block from `row_block` on that attends to a key of this tile.
  const auto attending = [&](int64_t row_block) {
    while (row_block < args.row_blocks && block_last[row_block] < first_key) ++row_block;
    return row_block;
  };
  const float below_maximum = args.log2_threshold / args.factor;

  ColumnSums columns;
  for_each_tile<false>(
      memory.tiles, args, query_rows(args, b, h), key_rows(args, b, h), first_key, attending(0),
      args.row_blocks, [&](int64_t row_block) { return attending(row_block + 1); },
      [&](int64_t row_block, const Logits& logits) {
        const int64_t first_row = row_block * kTileRows, row_at = head * args.group_rows + first_row;
        const int64_t rows_left = args.group_rows - first_row;
        int32_t last[4];
        bool whole = true;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = tile_row(thread, i);
          last[i] = row < rows_left ? args.row_last[row_at + row] : -1;
          whole = whole && last[i] >= first_key + kTileKeys - 1;
        }
        if (__all_sync(kAllLanes, whole)) {
          add_rows<false>(columns, logits, args, row_at, rows_left, last, first_key, below_maximum);
        } else {
          add_rows<true>(columns, logits, args, row_at, rows_left, last, first_key, below_maximum);
        }
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
    args.tile_below[blockIdx.x] = below;
  }
}

}  // namespace vlkv::cuda
