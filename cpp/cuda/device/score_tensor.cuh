// Dot products of float16 and bfloat16 on the matrix units, summed in float32.
#pragma once

#include "cuda/device/ptx.cuh"
#include "cuda/device/score_args.cuh"

namespace vlkv::cuda {

// kAligned: rows are aligned for copies of 16 bytes, and all of a head fits into a tile.
template <class Type, int kDepthOfTile, bool kAligned>
struct TensorProduct {
  static constexpr bool kMayBeDeep = !kAligned;
  static constexpr int kDepth = kDepthOfTile;  // elements of a row that lie in shared memory at a time
  static constexpr int kChunk = 8, kChunks = kDepth / kChunk;  // of 16 bytes
  static constexpr int kAtOnce = kScoreThreads / kChunks;      // rows that the threads copy at a time
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
    if constexpr (kAligned)
      load_aligned(tile, args, rows, first);
    else
      load_any(tile, args, rows, first, depth);
  }

  template <class Rows>
  __device__ static void load_any(Tile& tile, const ScoreArgs& args, const Rows& rows, int64_t first,
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

  // A thread's rows are 8 or 16 apart, so that their chunks' places in a row are the same.
  template <class Rows>
  __device__ static void load_aligned(Tile& tile, const ScoreArgs& args, const Rows& rows, int64_t first) {
    static_assert(kAtOnce % 8 == 0 && kTileRows % kAtOnce == 0);
    const int row = static_cast<int>(threadIdx.x) / kChunks, chunk = static_cast<int>(threadIdx.x) % kChunks;
    const int64_t left = rows.count - first;
    const int inside =
        chunk * kChunk < args.head_dim ? static_cast<int>(left < kTileRows ? left : kTileRows) : 0;
    Type* const to = tile.element + at(row, chunk);
    auto from = rows.template walk<kAtOnce>(args, first + row);
#pragma unroll
    for (int i = 0; i < kTileRows / kAtOnce; ++i) {
      copy_16(to + i * kAtOnce * kDepth, from.at + chunk * 16, row + i * kAtOnce < inside);
      from.next(args);
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
    // A step's chunks are an even number on: in at(), one exclusive or of the first step's place.
    const Type* const query_at = query.element + query_row * kDepth;
    const Type* const key_at = key.element + key_row * kDepth;
    const int first_query = (query_chunk ^ (lane % 8)) * kChunk,
              first_key = (key_chunk ^ (lane % 8)) * kChunk;
#pragma unroll(kAligned ? kDepth / 16 : 4)
    for (int step = 0; step < kDepth / 16; ++step) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_matrices(a[i], query_at + (first_query ^ (step * 2 * kChunk)) + 16 * i * kDepth);
        load_matrices(b[i], key_at + (first_key ^ (step * 2 * kChunk)) + 16 * i * kDepth);
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
