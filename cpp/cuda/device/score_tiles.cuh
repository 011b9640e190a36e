// The loop of both passes: one operand's tile stays, the other's go by, double-buffered.
#pragma once

#include "cuda/device/ptx.cuh"
#include "cuda/device/score_args.cuh"

namespace vlkv::cuda {

template <class Product>
struct TileMemory {
  typename Product::Tile resident, passing[2];
};

// Before and after the loop, threads exchange what they have where the tiles lie.
template <class Product, class Exchange>
union ScoreMemory {
  TileMemory<Product> tiles;
  Exchange exchange;
};

// Calls use(tile, logits) for `tile` and for each tile that following() gives, while they are before `end`.
// Rows of the resident operand begin at `resident_first`; the passing one's tile t begins at row t * 64. Ends
// with a barrier: the memory may be used for something else.
template <bool kQueryStays, class Product, class Following, class Use>
__device__ __forceinline__ void for_each_tile(TileMemory<Product>& memory, const ScoreArgs& args,
                                              const QueryRows& query, const KeyRows& key,
                                              int64_t resident_first, int32_t tile, int32_t end,
                                              Following following, Use use) {
  const auto load_resident = [&](int64_t depth) {
    if constexpr (kQueryStays)
      Product::load_query(memory.resident, args, query, resident_first, depth);
    else
      Product::load_key(memory.resident, args, key, resident_first, depth);
  };
  const auto load_passing = [&](int stage, int32_t t, int64_t depth) {
    if constexpr (kQueryStays)
      Product::load_key(memory.passing[stage], args, key, int64_t{t} * kTileKeys, depth);
    else
      Product::load_query(memory.passing[stage], args, query, int64_t{t} * kTileRows, depth);
  };
  const auto multiply = [&](int stage, Logits& logits) {
    if constexpr (kQueryStays)
      Product::multiply(memory.resident, memory.passing[stage], logits);
    else
      Product::multiply(memory.passing[stage], memory.resident, logits);
  };

  if (Product::kMayBeDeep && args.head_dim > Product::kDepth) {
    for (; tile < end; tile = following(tile)) {
      Logits logits;
      for (int64_t depth = 0; depth < args.head_dim; depth += Product::kDepth) {
        load_resident(depth);
        load_passing(0, tile, depth);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        multiply(0, logits);
        __syncthreads();
      }
      use(tile, logits);
    }
    return;
  }
  load_resident(0);
  if (tile < end) load_passing(0, tile, 0);
  commit_copies();
  for (int stage = 0; tile < end; stage ^= 1) {
    const int32_t next = following(tile);
    wait_copies<0>();
    // The tile is there, and no warp multiplies the other stage's any more.
    __syncthreads();
    if (next < end) load_passing(stage ^ 1, next, 0);
    commit_copies();
    Logits logits;
    multiply(stage, logits);
    use(tile, logits);
    tile = next;
  }
  wait_copies<0>();
  __syncthreads();
}

}  // namespace vlkv::cuda
