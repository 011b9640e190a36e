// The arguments of Score's kernels, and shared index arithmetic.
#pragma once

#include "cuda/device/softmax.cuh"
#include "cuda/device/types.cuh"

namespace vlkv::cuda {

// A block multiplies 64 rows by 64 keys at a time with 4 warps, each of which has 32 rows and 32 keys.
inline constexpr int kTileRows = 64, kTileKeys = 64, kScoreThreads = 128;
inline constexpr int kScoreBlocks = 4;  // blocks per multiprocessor, which the registers limit

// What the second pass needs of a row. A row that attends to nothing has the inverse 0 and the last key -1.
struct alignas(16) RowFacts {
  float scaled;   // its maximum in units of the exponent
  float limit;    // a logit below it is below the threshold; finite
  float inverse;  // 1 / the sum of its weights
  int32_t last;   // the last key that it attends to
};

// The rows of a KV group form one matrix: row r is observed row r / group of query head h * group + r %
// group.
struct ScoreArgs {
  int64_t batch, kv_heads, group, rows, slots, head_dim;
  int64_t group_rows;  // group * rows
  CacheView query, key;
  int32_t query_type, key_type;  // vlkv::DType
  int32_t query_size, key_size;  // bytes of an element
  bool copies_16;                // query and key are aligned for copies of 16 bytes, unless the kernel knows
  const void* row_position;
  int64_t row_position_stride_b;
  bool wide_positions;  // row_position is int64
  // For walks over query rows: n / group is n * group_magic >> group_shift for n below 2^31.
  uint64_t group_magic;
  int32_t group_shift;
  uint32_t walk_groups;  // of a walk's step: rows % group, and the bytes of a step and where the group ends
  int64_t walk_bytes, wrap_bytes;
  float query_factor, factor;  // their product is scale * log2(e): before and after the dot product
  float log2_threshold;
  float* score;
  int64_t score_stride_b, score_stride_h;
  int64_t *pairs, *below;
  float* sparsity;
  bool accumulate;

  int64_t splits, row_blocks, tiles;
  float *split_maximum, *split_sum;  // [B, Hkv, splits, group_rows]
  RowFacts* row_facts;               // [B, Hkv, row_blocks, 64]
  int32_t* block_last;               // [B, Hkv, row_blocks]: the largest of their last keys
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
  VLKV_HOST_DEVICE float& at(int i, int j) { return value[i / 2][j / 2][i % 2 * 2 + j % 2]; }
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

  // Goes through rows first, first + kStep, ..., with what set_walk() computed for kStep.
  template <uint32_t kStep>
  struct Walk {
    const char* at;
    uint32_t g;
    VLKV_HOST_DEVICE void next(const ScoreArgs& a) {
      at += a.walk_bytes;
      g += a.walk_groups;
      if (g >= static_cast<uint32_t>(a.group)) {
        g -= static_cast<uint32_t>(a.group);
        at += a.wrap_bytes;
      }
    }
  };
  template <uint32_t kStep>
  VLKV_HOST_DEVICE Walk<kStep> walk(const ScoreArgs& a, int64_t first) const {
    const auto index = static_cast<uint32_t>(first);
    const auto s = static_cast<uint32_t>(index * a.group_magic >> a.group_shift);
    const uint32_t g = index - s * static_cast<uint32_t>(a.group);
    return {data + g * stride_g + s * stride_s, g};
  }
};

// Prepares walks over query rows with steps of `step` rows; group_rows is below 2^31.
inline void set_walk(ScoreArgs& a, int64_t step) {
  a.group_shift = 31;
  while (int64_t{1} << (a.group_shift - 31) < a.group) ++a.group_shift;
  const auto group = static_cast<uint64_t>(a.group);
  a.group_magic = ((uint64_t{1} << a.group_shift) + group - 1) / group;
  a.walk_groups = static_cast<uint32_t>(step % a.group);
  const int64_t size = a.query_size;
  a.walk_bytes = (step % a.group * a.query.stride_h + step / a.group * a.query.stride_s) * size;
  a.wrap_bytes = (a.query.stride_s - a.group * a.query.stride_h) * size;
}

struct KeyRows {
  const char* data;
  int64_t stride_s;
  int64_t count;
  VLKV_HOST_DEVICE const char* row(int64_t r) const { return data + r * stride_s; }

  template <uint32_t kStep>
  struct Walk {
    const char* at;
    int64_t step;
    VLKV_HOST_DEVICE void next(const ScoreArgs&) { at += step; }
  };
  template <uint32_t kStep>
  VLKV_HOST_DEVICE Walk<kStep> walk(const ScoreArgs&, int64_t first) const {
    return {row(first), kStep * stride_s};
  }
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
