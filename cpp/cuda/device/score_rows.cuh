// Score's first pass: each row's maximum and sum over one split of the keys. A block has 64 rows of one KV
// head.
#pragma once

#include "cuda/device/score_tiles.cuh"

namespace vlkv::cuda {

// A running maximum of raw logits, and the sum of 2^(factor * (logit - maximum)). A NaN passes the maximum by
// and stays in the sum.
struct RunningSum {
  float maximum = -kLargest, sum = 0.0F;

  __device__ void raise(float to, float factor) {
    const float raised = fmaxf(maximum, to);
    sum *= exp2_flushed(scaled_maximum(maximum, factor) - scaled_maximum(raised, factor));
    maximum = raised;
  }
  __device__ void add(const RunningSum& other, float factor) {
    const float raised = fmaxf(maximum, other.maximum);
    const float scaled = scaled_maximum(raised, factor);
    sum = sum * exp2_flushed(scaled_maximum(maximum, factor) - scaled) +
          other.sum * exp2_flushed(scaled_maximum(other.maximum, factor) - scaled);
    maximum = raised;
  }
};

// Keys past a row's last one get the weight 0.
__device__ __forceinline__ void hide_keys(Logits& logits, const int32_t (&last)[4], int32_t first_key) {
  const int32_t key = first_key + tile_key(static_cast<int>(threadIdx.x), 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (key + j / 2 * 8 + j % 2 > last[i]) logits.at(i, j) = -INFINITY;
    }
  }
}

__device__ __forceinline__ void add_tile(RunningSum (&rows)[4], const Logits& logits, float factor) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float maximum = -kLargest;
#pragma unroll
    for (int j = 0; j < 8; ++j) maximum = fmaxf(maximum, logits.at(i, j));
    rows[i].raise(maximum, factor);
    const float scaled = scaled_maximum(rows[i].maximum, factor);
#pragma unroll
    for (int j = 0; j < 8; ++j) rows[i].sum += exp2_flushed(fmaf(logits.at(i, j), factor, -scaled));
  }
}

struct RowExchange {
  int32_t longest[kScoreThreads / kWarp];
  float maximum[2][kTileRows], sum[2][kTileRows];
};

// Grid: row blocks, fastest, then splits, then B * Hkv.
template <class Product>
__global__ void __launch_bounds__(kScoreThreads, kScoreBlocks) score_rows(const ScoreArgs args) {
  __shared__ ScoreMemory<Product, RowExchange> memory;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t block = blockIdx.x;
  const int64_t row_block = block % args.row_blocks, split = block / args.row_blocks % args.splits;
  const int64_t head = block / args.row_blocks / args.splits;
  const int64_t b = head / args.kv_heads, h = head % args.kv_heads;
  const int64_t first_row = row_block * kTileRows;

  int32_t last[4], shortest = INT32_MAX, longest = -1;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    last[i] = last_key(args, b, first_row + tile_row(thread, i));
    shortest = last[i] < shortest ? last[i] : shortest;
    longest = last[i] > longest ? last[i] : longest;
  }
  RowExchange& exchange = memory.exchange;
  longest = __reduce_max_sync(kAllLanes, longest);
  if (thread % kWarp == 0) exchange.longest[thread / kWarp] = longest;
  __syncthreads();
  for (int warp = 0; warp < kScoreThreads / kWarp; ++warp) {
    longest = exchange.longest[warp] > longest ? exchange.longest[warp] : longest;
  }
  __syncthreads();
  shortest = __reduce_min_sync(kAllLanes, shortest);

  const int64_t each = split_tiles(args.tiles, args.splits);
  const int64_t reached = parts(int64_t{longest} + 1, kTileKeys);
  const int64_t end = clamped((split + 1) * each, 0, reached);
  RunningSum rows[4];
  for_each_tile<true>(
      memory.tiles, args, query_rows(args, b, h), key_rows(args, b, h), first_row,
      static_cast<int32_t>(split * each), static_cast<int32_t>(end), [](int32_t tile) { return tile + 1; },
      [&](int32_t tile, Logits& logits) {
        const int32_t first_key = tile * kTileKeys;
        if (first_key + kTileKeys - 1 > shortest) hide_keys(logits, last, first_key);
        add_tile(rows, logits, args.factor);
      });

  // Four lanes share a row, and two warps: always added in the same order.
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
      RunningSum other;
      other.maximum = __shfl_xor_sync(kAllLanes, rows[i].maximum, distance);
      other.sum = __shfl_xor_sync(kAllLanes, rows[i].sum, distance);
      rows[i].add(other, args.factor);
    }
    if (thread % 4 == 0) {
      exchange.maximum[thread / 64][tile_row(thread, i)] = rows[i].maximum;
      exchange.sum[thread / 64][tile_row(thread, i)] = rows[i].sum;
    }
  }
  __syncthreads();
  if (thread < kTileRows && first_row + thread < args.group_rows) {
    RunningSum row{exchange.maximum[0][thread], exchange.sum[0][thread]};
    row.add({exchange.maximum[1][thread], exchange.sum[1][thread]}, args.factor);
    const int64_t at = (head * args.splits + split) * args.group_rows + first_row + thread;
    args.split_maximum[at] = row.maximum;
    args.split_sum[at] = row.sum;
  }
}

}  // namespace vlkv::cuda
