// Dot products of float16 and bfloat16 on the matrix units, summed in float32.
#pragma once

#include "cuda/device/ptx.cuh"
#include "cuda/device/score_args.cuh"

namespace vlkv::cuda {

template <class Type, int kDepthOfTile>
struct TensorProduct {
  static constexpr int kDepth = kDepthOfTile;  // elements of a row that lie in shared memory at a time
  static constexpr int kChunk = 8, kChunks = kDepth / kChunk;  // of 16 bytes
  static_assert(kTileRows == 64 && kTileKeys == 64 && kScoreThreads == 128 && kChunks % 8 == 0);

  struct alignas(16) Tile {
    Type element[kTileRows * kDepth];
  };

  // Chunks of neighbouring rows lie in different banks: 8 rows of a fragment are read without conflict.
  VLKV_HOST_DEVICE static int at(int row, int chunk) {
    return (row * kChunks + (chunk ^ (row % 8))) * kChunk;
  }

  // Rows [first, first + 64), elements [depth, depth + kDepth); zeros outside. Complete after wait_copies()
  // and a barrier.
  template <class Rows>
  __device__ static void load(Tile& tile, const ScoreArgs& args, const Rows& rows, int64_t first,
                              int64_t depth) {
#pragma unroll 2
    for (int i = 0; i < kTileRows * kChunks / kScoreThreads; ++i) {
      const int item = i * kScoreThreads + static_cast<int>(threadIdx.x);
      const int row = item / kChunks, chunk = item % kChunks;
      Type* const to = tile.element + at(row, chunk);
      const int64_t begin = depth + chunk * kChunk;
      const bool inside = first + row < rows.count && begin < args.head_dim;
      const Type* const from =
          reinterpret_cast<const Type*>(inside ? rows.row(first + row) : rows.data) + (inside ? begin : 0);
      if (args.copies_16) {
        copy_16(to, from, inside);
      } else {
        for (int e = 0; e < kChunk; ++e) to[e] = inside && begin + e < args.head_dim ? from[e] : Type{0};
      }
    }
  }

  __device__ static void load_query(Tile& tile, const ScoreArgs& args, const QueryRows& rows, int64_t first,
                                    int64_t depth) {
    load(tile, args, rows, first, depth);
  }
  __device__ static void load_key(Tile& tile, const ScoreArgs& args, const KeyRows& rows, int64_t first,
                                  int64_t depth) {
    load(tile, args, rows, first, depth);
  }

  // Lanes of a warp have each row of its two query fragments and of its four key fragments in the order that
  // mma.m16n8k16 wants them.
  __device__ static void multiply(const Tile& query, const Tile& key, Logits& logits) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int query_row = warp % 2 * 32 + lane % 16, query_chunk = lane / 16;
    const int key_row = warp / 2 * 32 + lane / 16 * 8 + lane % 8, key_chunk = lane / 8 % 2;
#pragma unroll 4
    for (int step = 0; step < kDepth / 16; ++step) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrices(a[i], query.element + at(query_row + 16 * i, step * 2 + query_chunk));
        load_matrices(b[i], key.element + at(key_row + 16 * i, step * 2 + key_chunk));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          multiply_add<Type>(logits.value[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
};

}  // namespace vlkv::cuda
