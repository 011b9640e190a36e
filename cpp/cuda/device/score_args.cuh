// The arguments of Score's kernels, and shared index arithmetic.
#pragma once

#include "cuda/device/softmax.cuh"
#include "cuda/device/types.cuh"

namespace vlkv::cuda {

// A block multiplies 64 rows by 64 keys at a time with 4 warps, each of which has 32 rows and 32 keys.
inline constexpr int kTileRows = 64, kTileKeys = 64, kScoreThreads = 128;
inline constexpr int kScoreBlocks = 4;  // blocks per multiprocessor, which the registers limit

// The rows of a KV group form one matrix: row r is observed row r / group of query head h * group + r %
// group.
struct ScoreArgs {
  int64_t batch, kv_heads, group, rows, slots, head_dim;
  int64_t group_rows;  // group * rows
  CacheView query, key;
  int32_t query_type, key_type;  // vlkv::DType
  int32_t query_size, key_size;  // bytes of an element
  bool copies_16;                // query and key are aligned for copies of 16 bytes
  const void* row_position;
  int64_t row_position_stride_b;
  bool wide_positions;         // row_position is int64
  float query_factor, factor;  // their product is scale * log2(e): before and after the dot product
  float log2_threshold;
  float* score;
  int64_t score_stride_b, score_stride_h;
  int64_t *pairs, *below;
  float* sparsity;
  bool accumulate;

  int64_t splits, row_blocks, tiles;
  float *split_maximum, *split_sum;  // [B, Hkv, splits, group_rows]
  float *row_maximum, *row_inverse;  // [B, Hkv, group_rows]
  int32_t* row_last;                 // [B, Hkv, group_rows]: the last key that the row attends to, or -1
  int32_t* block_last;               // [B, Hkv, row_blocks]: the largest of them
  int64_t* block_pairs;              // [B, Hkv, row_blocks]
  int64_t* tile_below;               // [B, Hkv, tiles]
};

// A split's keys are whole tiles; the last splits may have none.
VLKV_HOST_DEVICE int64_t split_tiles(int64_t tiles, int64_t splits) { return parts(tiles, splits); }

// A thread has 4 rows and 8 keys of its block's tile, as mma.m16n8k16 leaves them: lanes 4i..4i+3 share rows.
VLKV_HOST_DEVICE int tile_row(int thread, int i) {
  const int warp = thread / kWarp, lane = thread % kWarp;
  return (warp % 2) * 32 + i * 8 + lane / 4;
}
VLKV_HOST_DEVICE int tile_key(int thread, int j) {
  const int warp = thread / kWarp, lane = thread % kWarp;
  return (warp / 2) * 32 + (j / 2) * 8 + (lane % 4) * 2 + j % 2;
}

// The dot products of a thread's rows and keys.
struct Logits {
  float value[2][4][4] = {};  // [16 rows][8 keys][fragment]
  VLKV_HOST_DEVICE float at(int i, int j) const { return value[i / 2][j / 2][i % 2 * 2 + j % 2]; }
};

// The last key that row r of a KV group attends to; -1 if there is none or no such row.
VLKV_HOST_DEVICE int32_t last_key(const ScoreArgs& a, int64_t b, int64_t r) {
  if (r >= a.group_rows) return -1;
  const int64_t at = b * a.row_position_stride_b + r / a.group;
  const int64_t position = a.wide_positions ? static_cast<const int64_t*>(a.row_position)[at]
                                            : int64_t{static_cast<const int32_t*>(a.row_position)[at]};
  return static_cast<int32_t>(clamped(position, -1, a.slots - 1));
}

// The location of the rows and keys of one KV head.
struct QueryRows {
  const char* data;
  int64_t stride_g, stride_s;  // bytes
  uint32_t group;
  int64_t count;
  VLKV_HOST_DEVICE const char* row(int64_t r) const {
    const auto index = static_cast<uint32_t>(r);
    return data + index % group * stride_g + index / group * stride_s;
  }
};
struct KeyRows {
  const char* data;
  int64_t stride_s;
  int64_t count;
  VLKV_HOST_DEVICE const char* row(int64_t r) const { return data + r * stride_s; }
};

VLKV_HOST_DEVICE QueryRows query_rows(const ScoreArgs& a, int64_t b, int64_t h) {
  const int64_t size = a.query_size;
  const char* data = a.query.data + (b * a.query.stride_b + h * a.group * a.query.stride_h) * size;
  return {data, a.query.stride_h * size, a.query.stride_s * size, static_cast<uint32_t>(a.group),
          a.group_rows};
}
VLKV_HOST_DEVICE KeyRows key_rows(const ScoreArgs& a, int64_t b, int64_t h) {
  const int64_t size = a.key_size;
  return {a.key.data + (b * a.key.stride_b + h * a.key.stride_h) * size, a.key.stride_s * size, a.slots};
}

}  // namespace vlkv::cuda
