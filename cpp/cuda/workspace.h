// Where the parts of a CUDA workspace lie, as offsets in bytes. Plain C++, compiled in every build.
#pragma once

#include "vlkv/cuda.h"

namespace vlkv::cuda {

inline constexpr int64_t kKeysPerSplit = 2048, kMostSplits = 64, kKeysPerTile = 64;

// Pass 1 of Score gives each row a maximum and a sum for each split of the keys; pass 2 gives each tile of
// keys its counts, which are added up in tile order.
struct ScoreLayout {
  int64_t splits = 0, tiles = 0;
  size_t maximum = 0, sum = 0;  // float [B, Hq, splits, W]
  size_t pairs = 0, below = 0;  // int64 [B, Hkv, tiles]
  size_t size = 0;
};
ScoreLayout layout(const ScoreParams& params);

// Evict needs room only for one selection of all heads.
struct EvictLayout {
  size_t shared_score = 0;  // float [B, C], none where each head selects
  size_t size = 0;
};
EvictLayout layout(const EvictParams& params);

}  // namespace vlkv::cuda
