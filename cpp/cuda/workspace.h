// Where the parts of a CUDA workspace lie, as offsets in bytes. Plain C++, compiled in every build.
#pragma once

#include "vlkv/cuda.h"

namespace vlkv::cuda {

// Pass 1 of Score gives each row a maximum and a sum for each split of the keys; these are put together for
// each row; pass 2 gives each tile of keys its count. Sizes grow with every size of the parameters, so there
// are as many splits for few rows as for many.
inline constexpr int64_t kKeysPerSplit = 512, kMostSplits = 32;

struct ScoreLayout {
  int64_t splits = 0, row_blocks = 0, tiles = 0;
  size_t split_maximum = 0, split_sum = 0;                // float [B, Hkv, splits, Hq / Hkv * W]
  size_t row_maximum = 0, row_inverse = 0, row_last = 0;  // float, float, int32 [B, Hkv, Hq / Hkv * W]
  size_t block_last = 0, block_pairs = 0;                 // int32, int64 [B, Hkv, row_blocks]
  size_t tile_below = 0;                                  // int64 [B, Hkv, tiles]
  size_t size = 0;
};
ScoreLayout layout(const ScoreParams& params);

// Evict needs room only for one selection of all heads.
struct EvictLayout {
  size_t shared_score = 0;  // float [B, C], none where each head selects
  size_t size = 0;
};
EvictLayout layout(const EvictParams& params);

// Attend's keys are cut in splits where rows and heads alone would leave most multiprocessors without a
// block. Each split gives each row a maximum, a sum and D sums of weighted values.
inline constexpr int64_t kAttendKeysPerSplit = 256, kMostAttendSplits = 64;
inline constexpr int64_t kFewRows = 16, kManyRows = 64;                // of a KV group that a block has
inline constexpr int64_t kFewRowsBlocks = 512, kManyRowsBlocks = 256;  // that are asked for

struct AttendLayout {
  bool few = true;
  int64_t splits = 1, row_blocks = 0;
  size_t maximum = 0, sum = 0;  // float [B, Hkv, splits, Hq / Hkv * S]
  size_t partial = 0;           // float [B, Hkv, splits, Hq / Hkv * S, D]
  size_t size = 0;
};
AttendLayout layout(const AttendRowsParams& params);

}  // namespace vlkv::cuda
