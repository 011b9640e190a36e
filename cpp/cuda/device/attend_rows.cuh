// Attend: a block has some rows of one KV head and processes one split of the keys that they attend to. The
// copy of a tile's values overlaps the product with its keys, and that of the next keys the product with the
// values.
#pragma once

#include <type_traits>

#include "cuda/device/attend_tile.cuh"

namespace vlkv::cuda {

// Shared memory of the tiles, which is reused to combine the warps' results with few rows.
template <class Shape>
struct AttendExchange {
  float maximum[Shape::kKeyWarps][Shape::kRows], sum[Shape::kKeyWarps][Shape::kRows];
  float mean[Shape::kKeyWarps][Shape::kRows][Shape::kDim];
};
struct NoExchange {};
template <class Shape>
union AttendMemory {
  struct alignas(16) Tiles {
    typename Shape::Type key[Shape::kTileKeys * Shape::kPitch], value[Shape::kTileKeys * Shape::kPitch];
  } tiles;
  typename Shape::Type query[Shape::kRows * Shape::kPitch];
  std::conditional_t<Shape::kFew, AttendExchange<Shape>, NoExchange> exchange;
};

// The sharing of a tile: all warps of a block share it, or each warp has its own part.
template <class Shape>
__device__ __forceinline__ void tile_barrier() {
  if constexpr (Shape::kFew)
    __syncwarp();
  else
    __syncthreads();
}

// The destination of a row's result: the output, or one split's part of it.
template <class Shape>
struct RowResults {
  const AttendArgs& args;
  int64_t b, h, split;

  // Writes elements d and d + 1 of row r.
  __device__ void write(int64_t r, int64_t d, float maximum, float sum, float low, float high) const {
    if (d >= args.head_dim) return;
    if (args.splits == 1) {
      const float inverse = 1.0F / sum;  // infinite for a sum of 0, and 0 times that is NaN
      const int64_t offset = group_row(args.result, static_cast<uint32_t>(args.group), r);
      char* const to =
          const_cast<char*>(head_of<typename Shape::Type>(args.result, b, h * args.group)) + offset;
      reinterpret_cast<uint32_t*>(to)[d / 2] = packed<typename Shape::Type>(low * inverse, high * inverse);
      return;
    }
    const int64_t at = ((b * args.kv_heads + h) * args.splits + split) * args.group_rows + r;
    if (d == 0) {
      args.maximum[at] = maximum;
      args.sum[at] = sum;
    }
    args.partial[at * args.head_dim + d] = low;
    args.partial[at * args.head_dim + d + 1] = high;
  }

  // Clears rows [first, end), which are padding.
  __device__ void clear(int64_t first, int64_t end) const {
    if (args.splits > 1) return;  // attend_join clears them
    const auto pairs = static_cast<int>(args.head_dim / 2);
    for (int item = static_cast<int>(threadIdx.x); item < (end - first) * pairs; item += Shape::kThreads) {
      write(first + item / pairs, item % pairs * 2, 0.0F, 1.0F, 0.0F, 0.0F);
    }
  }
};

// With many rows each warp writes its own rows.
template <class Shape>
__device__ __forceinline__ void write_own(const RowResults<Shape>& results, const RowState<Shape>& rows,
                                          int64_t first_row, int64_t valid) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t r = first_row + thread / kWarp * 16 + lane / 4 + 8 * i;
    if (r >= valid) continue;
#pragma unroll
    for (int d = 0; d < Shape::kDim / 8; ++d) {
      results.write(r, d * 8 + lane % 4 * 2, rows.maximum[i], rows.sum[i], rows.mean[d][2 * i],
                    rows.mean[d][2 * i + 1]);
    }
  }
}

// With few rows the warps' results are summed, always in the same order.
template <class Shape>
__device__ __forceinline__ void write_joined(AttendExchange<Shape>& exchange,
                                             const RowResults<Shape>& results, RowState<Shape>& rows,
                                             int64_t first_row, int64_t valid, float factor) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const auto count = static_cast<int>(valid - first_row < Shape::kRows ? valid - first_row : Shape::kRows);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = lane / 4 + 8 * i;
    if (lane % 4 == 0) {
      exchange.maximum[warp][r] = rows.maximum[i];
      exchange.sum[warp][r] = rows.sum[i];
    }
    if (r >= count) continue;
#pragma unroll
    for (int d = 0; d < Shape::kDim / 8; ++d) {
      exchange.mean[warp][r][d * 8 + lane % 4 * 2] = rows.mean[d][2 * i];
      exchange.mean[warp][r][d * 8 + lane % 4 * 2 + 1] = rows.mean[d][2 * i + 1];
    }
  }
  __syncthreads();
  constexpr int kPairs = Shape::kDim / 2;
  for (int item = thread; item < count * kPairs; item += Shape::kThreads) {
    const int r = item / kPairs, d = item % kPairs * 2;
    float maximum = exchange.maximum[0][r];
#pragma unroll
    for (int other = 1; other < Shape::kKeyWarps; ++other)
      maximum = fmaxf(maximum, exchange.maximum[other][r]);
    const float scaled = scaled_maximum(maximum, factor);
    float sum = 0.0F, low = 0.0F, high = 0.0F;
#pragma unroll
    for (int other = 0; other < Shape::kKeyWarps; ++other) {
      const float kept = exp2_flushed(scaled_maximum(exchange.maximum[other][r], factor) - scaled);
      sum += exchange.sum[other][r] * kept;
      low += exchange.mean[other][r][d] * kept;
      high += exchange.mean[other][r][d + 1] * kept;
    }
    results.write(first_row + r, d, maximum, sum, low, high);
  }
}

// Grid: row blocks (fastest, those with the most keys first), then splits, then B * Hkv.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks) attend_rows(const AttendArgs args) {
  using Type = typename Shape::Type;
  __shared__ AttendMemory<Shape> memory;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int64_t block = blockIdx.x;
  const int64_t row_block = args.row_blocks - 1 - block % args.row_blocks;
  const int64_t split = block / args.row_blocks % args.splits, head = block / args.row_blocks / args.splits;
  const int64_t b = head / args.kv_heads, h = head % args.kv_heads;
  const Extent prompt = extent(args, b);
  const int64_t first_row = row_block * Shape::kRows, valid = prompt.count * args.group;
  const int64_t end_row =
      first_row + Shape::kRows < args.group_rows ? first_row + Shape::kRows : args.group_rows;
  const RowResults<Shape> results{args, b, h, split};
  if (first_row >= valid) {
    results.clear(first_row, end_row);
    return;
  }

  // Rows past the last are computed like the last and never written.
  const auto last_of = [&](int64_t r) {
    const auto row = static_cast<uint32_t>(r < valid ? r : valid - 1);
    return static_cast<int32_t>(prompt.length + row / static_cast<uint32_t>(args.group));
  };
  const int warp_row = Shape::kFew ? 0 : warp * 16, warp_key = Shape::kFew ? warp * 16 : 0;
  const int32_t shortest = last_of(first_row + warp_row);
  const int32_t last[2] = {last_of(first_row + warp_row + lane / 4),
                           last_of(first_row + warp_row + lane / 4 + 8)};
  const int64_t reached = int64_t{last_of(end_row - 1)} + 1;
  const int64_t tiles = parts(reached, Shape::kTileKeys), each = parts(tiles, args.splits);
  const int64_t end = clamped((split + 1) * each, 0, tiles);
  int64_t tile = split * each;

  QueryFragments<Shape> query;
  const char* const query_head = head_of<Type>(args.query, b, h * args.group);
  copy_rows<Shape, Shape::kRows, Shape::kThreads>(
      memory.query, thread, valid - first_row, args.head_dim, [&](int r) {
        const int64_t row = first_row + r < valid ? first_row + r : valid - 1;
        return query_head + group_row(args.query, static_cast<uint32_t>(args.group), row);
      });
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  load_query_fragments<Shape>(query, memory.query + warp_row * Shape::kPitch);
  __syncthreads();

  // With few rows a warp copies the 16 keys that it reads; else all threads copy the tile together.
  constexpr int kCopied = Shape::kWarpKeys, kCopying = Shape::kFew ? kWarp : Shape::kThreads;
  const int copier = Shape::kFew ? lane : thread;
  const auto copy_tile = [&](Type* to, const CacheView& cache, int64_t t) {
    const int64_t first = t * Shape::kTileKeys + warp_key, stride = cache.stride_s * kAttendBytes;
    const char* const from = head_of<Type>(cache, b, h) + first * stride;
    copy_rows<Shape, kCopied, kCopying>(to + warp_key * Shape::kPitch, copier, reached - first, args.head_dim,
                                        [&](int r) { return from + r * stride; });
    commit_copies();
  };
  RowState<Shape> rows;
  if (tile < end) copy_tile(memory.tiles.key, args.key_cache, tile);
  for (; tile < end; ++tile) {
    copy_tile(memory.tiles.value, args.value_cache, tile);
    wait_copies<1>();
    tile_barrier<Shape>();
    float weights[Shape::kWarpKeys / 8][4];
    multiply_keys<Shape>(weights, query, memory.tiles.key + warp_key * Shape::kPitch);
    tile_barrier<Shape>();
    if (tile + 1 < end) {
      copy_tile(memory.tiles.key, args.key_cache, tile + 1);
    } else {
      commit_copies();
    }
    const auto first_key = static_cast<int32_t>(tile * Shape::kTileKeys) + warp_key;
    const int32_t key = first_key + lane % 4 * 2;
    if (first_key + Shape::kWarpKeys - 1 <= shortest)
      weigh<Shape, false>(rows, weights, last, key, args.factor);
    else
      weigh<Shape, true>(rows, weights, last, key, args.factor);
    wait_copies<1>();
    tile_barrier<Shape>();
    add_values<Shape>(rows, weights, memory.tiles.value + warp_key * Shape::kPitch);
    tile_barrier<Shape>();
  }
  wait_copies<0>();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows.sum[i] += __shfl_xor_sync(kAllLanes, rows.sum[i], 1);
    rows.sum[i] += __shfl_xor_sync(kAllLanes, rows.sum[i], 2);
  }
  if constexpr (Shape::kFew)
    write_joined<Shape>(memory.exchange, results, rows, first_row, valid, args.factor);
  else
    write_own<Shape>(results, rows, first_row, valid);
  if (valid < end_row) results.clear(valid, end_row);
}

}  // namespace vlkv::cuda
