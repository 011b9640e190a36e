// Dot products in float32 multiply-adds, for float32, and for query and key of different types. The matrix
// units would need three tf32 products to approach float32; this has the CPU's accuracy.
#pragma once

#include "cuda/device/ptx.cuh"
#include "cuda/device/score_args.cuh"

namespace vlkv::cuda {

// An element whose type is known at run time only.
struct AnyType;

template <class Type>
__device__ __forceinline__ float element(const char* row, int64_t index, int32_t) {
  return to_float(reinterpret_cast<const Type*>(row)[index]);
}
template <>
__device__ __forceinline__ float element<AnyType>(const char* row, int64_t index, int32_t type) {
  return type == 0   ? element<float>(row, index, type)
         : type == 1 ? element<Float16>(row, index, type)
                     : element<BFloat16>(row, index, type);
}

template <class Type>
struct FloatProduct {
  static constexpr int kDepth = 32;
  static constexpr bool kMayBeDeep = true;
  static constexpr int kStride = kDepth + 4;  // 8 rows of 16 bytes are in different banks
  static_assert(kTileRows == 64 && kTileKeys == 64);

  struct alignas(16) Tile {
    float element[kTileRows * kStride];
  };

  template <class Rows>
  __device__ static void load(Tile& tile, const ScoreArgs& args, const Rows& rows, int32_t type,
                              int64_t first, int64_t depth, float factor) {
    const int column = static_cast<int>(threadIdx.x) % kDepth;
    const bool inside = depth + column < args.head_dim;
#pragma unroll 4
    for (int row = static_cast<int>(threadIdx.x) / kDepth; row < kTileRows; row += kScoreThreads / kDepth) {
      float value = 0.0F;
      if (inside && first + row < rows.count) {
        value = element<Type>(rows.row(first + row), depth + column, type) * factor;
      }
      tile.element[row * kStride + column] = value;
    }
  }

  __device__ static void load_query(Tile& tile, const ScoreArgs& args, const QueryRows& rows, int64_t first,
                                    int64_t depth) {
    load(tile, args, rows, args.query_type, first, depth, args.query_factor);
  }
  __device__ static void load_key(Tile& tile, const ScoreArgs& args, const KeyRows& rows, int64_t first,
                                  int64_t depth) {
    load(tile, args, rows, args.key_type, first, depth, 1.0F);
  }

  __device__ static void multiply(const Tile& query, const Tile& key, Logits& logits) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
    for (int d = 0; d < kDepth; d += 4) {
      float q[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_4(q[i], query.element + tile_row(thread, i) * kStride + d);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float k[4];
        load_4(k, key.element + tile_key(thread, j) * kStride + d);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& sum = logits.value[i / 2][j / 2][i % 2 * 2 + j % 2];
#pragma unroll
          for (int e = 0; e < 4; ++e) sum = fmaf(q[i][e], k[e], sum);
        }
      }
    }
  }

 private:
  __device__ static void load_4(float (&to)[4], const float* from) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  }
};

}  // namespace vlkv::cuda
