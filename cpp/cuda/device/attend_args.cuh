// The arguments of Attend's kernels, the shapes of their blocks, and shared index arithmetic.
#pragma once

#include "cuda/device/types.cuh"

namespace vlkv::cuda {

// The rows of a KV group form one matrix: row r is token r / group of query head h * group + r % group.
struct AttendArgs {
  int64_t batch, kv_heads, group, rows, slots, head_dim;
  int64_t group_rows;  // group * rows
  CacheView query, key, value, key_cache, value_cache, result;
  const int64_t *length, *count;
  float factor;  // scale * log2(e)

  int64_t splits, row_blocks;
  float *maximum, *sum;  // [B, Hkv, splits, group_rows], where there are several splits
  float* partial;        // [B, Hkv, splits, group_rows, D], not yet divided by the sum
};

inline constexpr int kAttendBytes = 2;  // of an element

// A prompt's length and count, clamped so that no index leads outside a buffer.
struct Extent {
  int64_t length, count;
};
VLKV_HOST_DEVICE Extent extent(const AttendArgs& a, int64_t b) {
  const int64_t length = clamped(a.length[b], 0, a.slots), free = a.slots - length;
  return {length, clamped(a.count[b], 0, a.rows < free ? a.rows : free)};
}

// Few rows: all warps share 16 rows, and each warp has 16 keys of a tile. Many rows: 64 rows, 16 per warp,
// and all warps share the tile.
template <class ElementType, int kDimOfHead, bool kFewRows>
struct AttendShape {
  using Type = ElementType;
  static constexpr int kDim = kDimOfHead;
  static constexpr bool kFew = kFewRows;
  static constexpr int kTileKeys = kDim <= 128 ? 64 : kFew ? 32 : 16;
  static constexpr int kRowWarps = kFew ? 1 : 4, kKeyWarps = kFew ? kTileKeys / 16 : 1;
  static constexpr int kThreads = kWarp * kRowWarps * kKeyWarps;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kWarpKeys = kTileKeys / kKeyWarps;
  // Blocks per multiprocessor, which the registers limit.
  static constexpr int kBlocks = kFew ? (kDim <= 64 ? 4 : kDim <= 128 ? 3 : 4) : kDim <= 64 ? 3 : 2;

  // The pitch of rows in shared memory is an odd multiple of 16 bytes: 8 rows of a matrix are in different
  // banks.
  static constexpr int kChunk = 8, kChunks = kDim / kChunk, kPitch = (kChunks + 1) * kChunk;
  static_assert(kChunks % 2 == 0);
};

template <class Type>
VLKV_HOST_DEVICE const char* head_of(const CacheView& view, int64_t b, int64_t h) {
  return view.data + (b * view.stride_b + h * view.stride_h) * static_cast<int64_t>(sizeof(Type));
}

// The offset of row r of a KV group, in bytes from the group's first head.
VLKV_HOST_DEVICE int64_t group_row(const CacheView& view, uint32_t group, int64_t r) {
  const auto index = static_cast<uint32_t>(r);
  return (index % group * view.stride_h + index / group * view.stride_s) * kAttendBytes;
}

}  // namespace vlkv::cuda
