// Attend's tiles: copies to shared memory, the two products of a tile, and the softmax between them.
#pragma once

#include "cuda/device/attend_args.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/softmax.cuh"

namespace vlkv::cuda {

// Starts the copy of rows [0, kCount) by kThreads threads; this one is `thread`. Row r is read at row(r);
// rows from `valid` on, and elements after head_dim, are zeros.
template <class Shape, int kCount, int kThreads, class Row>
__device__ __forceinline__ void copy_rows(typename Shape::Type* to, int thread, int64_t valid,
                                          int64_t head_dim, Row row) {
  // Lanes per row: the largest power of two that divides its 16-byte chunks.
  constexpr int kPower = Shape::kChunks & -Shape::kChunks, kLanes = kPower < kThreads ? kPower : kThreads;
  static_assert(kThreads % kLanes == 0 && Shape::kChunks % kLanes == 0);
  constexpr int kAtOnce = kThreads / kLanes;
  static_assert(kCount % kAtOnce == 0 || kCount < kAtOnce);
  const int first_chunk = thread % kLanes, first_row = thread / kLanes;
#pragma unroll
  for (int i = 0; i < (kCount < kAtOnce ? 1 : kCount / kAtOnce); ++i) {
    const int r = first_row + i * kAtOnce;
    if (kCount < kAtOnce && r >= kCount) break;
    const char* const from = row(r);
#pragma unroll
    for (int j = 0; j < Shape::kChunks / kLanes; ++j) {
      const int chunk = first_chunk + j * kLanes;
      const bool inside = r < valid && chunk * Shape::kChunk < head_dim;
      copy_16(to + r * Shape::kPitch + chunk * Shape::kChunk, from + chunk * 16, inside);
    }
  }
}

// A warp's state of its 16 rows. Lanes 4i..4i+3 share rows i and i + 8; each lane sums its own columns.
template <class Shape>
struct RowState {
  float maximum[2] = {-kLargest, -kLargest}, sum[2] = {};
  float mean[Shape::kDim / 8][4] = {};  // not yet divided by the sum
};

template <class Shape>
struct QueryFragments {
  uint32_t step[Shape::kDim / 16][4];
};

template <class Shape>
__device__ __forceinline__ void load_query_fragments(QueryFragments<Shape>& query,
                                                     const typename Shape::Type* rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int step = 0; step < Shape::kDim / 16; ++step) {
    load_matrices(query.step[step],
                  rows + lane % 16 * Shape::kPitch + (step * 2 + lane / 16) * Shape::kChunk);
  }
}

// The dot products of the warp's rows and its keys of the tile, unscaled.
template <class Shape>
__device__ __forceinline__ void multiply_keys(float (&logits)[Shape::kWarpKeys / 8][4],
                                              const QueryFragments<Shape>& query,
                                              const typename Shape::Type* keys) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const typename Shape::Type* const from =
      keys + (lane / 16 * 8 + lane % 8) * Shape::kPitch + lane / 8 % 2 * Shape::kChunk;
#pragma unroll
  for (int j = 0; j < Shape::kWarpKeys / 8; ++j) {
    for (float& x : logits[j]) x = 0.0F;
  }
#pragma unroll
  for (int step = 0; step < Shape::kDim / 16; ++step) {
#pragma unroll
    for (int j = 0; j < Shape::kWarpKeys / 16; ++j) {
      uint32_t b[4];
      load_matrices(b, from + 16 * j * Shape::kPitch + step * 2 * Shape::kChunk);
      multiply_add<typename Shape::Type>(logits[2 * j], query.step[step], b[0], b[1]);
      multiply_add<typename Shape::Type>(logits[2 * j + 1], query.step[step], b[2], b[3]);
    }
  }
}

// Converts logits to weights 2^(factor * (logit - maximum)) and rescales earlier sums to the new maximum. A
// NaN does not affect the maximum and stays in the sum. `key` is the lane's first key of the tile.
template <class Shape, bool kMasked>
__device__ __forceinline__ void weigh(RowState<Shape>& rows, float (&logits)[Shape::kWarpKeys / 8][4],
                                      const int32_t (&last)[2], int32_t key, float factor) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float maximum = rows.maximum[i];
#pragma unroll
    for (int j = 0; j < Shape::kWarpKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& logit = logits[j][2 * i + e];
        if (kMasked && key + 8 * j + e > last[i]) logit = -INFINITY;
        maximum = fmaxf(maximum, logit);
      }
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 2));
    const float scaled = scaled_maximum(maximum, factor);
    const float kept = exp2_flushed(scaled_maximum(rows.maximum[i], factor) - scaled);
    rows.maximum[i] = maximum;
    float sum = rows.sum[i] * kept;
#pragma unroll
    for (int j = 0; j < Shape::kWarpKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& logit = logits[j][2 * i + e];
        logit = exp2_flushed(fmaf(logit, factor, -scaled));
        sum += logit;
      }
    }
    rows.sum[i] = sum;
#pragma unroll
    for (int d = 0; d < Shape::kDim / 8; ++d) {
      rows.mean[d][2 * i] *= kept;
      rows.mean[d][2 * i + 1] *= kept;
    }
  }
}

template <class Shape>
__device__ __forceinline__ void add_values(RowState<Shape>& rows,
                                           const float (&weights)[Shape::kWarpKeys / 8][4],
                                           const typename Shape::Type* values) {
  using Type = typename Shape::Type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Type* const from = values + lane % 16 * Shape::kPitch + lane / 16 * Shape::kChunk;
#pragma unroll
  for (int k = 0; k < Shape::kWarpKeys / 16; ++k) {
    const float (&left)[4] = weights[2 * k], (&right)[4] = weights[2 * k + 1];
    const uint32_t a[4] = {packed<Type>(left[0], left[1]), packed<Type>(left[2], left[3]),
                           packed<Type>(right[0], right[1]), packed<Type>(right[2], right[3])};
#pragma unroll
    for (int d = 0; d < Shape::kDim / 16; ++d) {
      uint32_t b[4];
      load_transposed(b, from + 16 * k * Shape::kPitch + d * 2 * Shape::kChunk);
      multiply_add<Type>(rows.mean[2 * d], a, b[0], b[1]);
      multiply_add<Type>(rows.mean[2 * d + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace vlkv::cuda
