// The layout of a CUDA workspace, as offsets in bytes. Plain C++, compiled in every build.
#pragma once

#include "vlkv/cuda.h"

namespace vlkv::cuda {

// Pass 1 of Score computes a maximum and a sum per row and split of the keys; these are combined per row;
// pass 2 computes a count per tile of keys. The layout must grow with every size of the parameters, so the
// number of splits does not depend on the number of rows.
inline constexpr int64_t kKeysPerSplit = 512, kMostSplits = 32;

struct ScoreLayout {
  int64_t splits = 0, row_blocks = 0, tiles = 0;
  size_t split_maximum = 0, split_sum = 0;  // float [B, Hkv, splits, Hq / Hkv * W]
  size_t row_facts = 0;                     // RowFacts [B, Hkv, row_blocks, 64]
  size_t block_last = 0, block_pairs = 0;   // int32, int64 [B, Hkv, row_blocks]
  size_t tile_below = 0;                    // int64 [B, Hkv, tiles]
  size_t size = 0;
};
ScoreLayout layout(const ScoreParams& params);

// Evict needs a workspace if all heads share a selection, or if several blocks select. These are worth two
// launches more where a cache is long and selections are few (docs/notes/cuda.md): together they should not
// be more blocks than a device has multiprocessors.
inline constexpr int64_t kPartedSlots = 65536, kSlotsPerPart = 8192;
inline constexpr int64_t kLeastParts = 4, kMostParts = 32, kPartedBlocks = 128;

struct EvictLayout {
  int64_t parts = 1;        // blocks of a selection
  size_t shared_score = 0;  // float [B, C], absent if each head selects
  size_t part_bins = 0;     // uint32 [selections, parts, kBins], as what follows only for several parts
  size_t part_facts = 0;    // EvictPart [selections, parts]
  size_t candidates = 0;    // uint32 [selections, C]
  size_t size = 0;
};
EvictLayout layout(const EvictParams& params);

// Attend's keys are split if rows and heads alone would leave most multiprocessors without a block. Each
// split computes a maximum, a sum and D sums of weighted values per row.
inline constexpr int64_t kAttendKeysPerSplit = 256, kMostAttendSplits = 64;
inline constexpr int64_t kFewRows = 16, kManyRows = 64;                // rows of a KV group per block
inline constexpr int64_t kFewRowsBlocks = 512, kManyRowsBlocks = 256;  // the desired numbers of blocks

struct AttendLayout {
  bool few = true;
  int64_t splits = 1, row_blocks = 0;
  size_t maximum = 0, sum = 0;  // float [B, Hkv, splits, Hq / Hkv * S]
  size_t partial = 0;           // float [B, Hkv, splits, Hq / Hkv * S, D]
  size_t size = 0;
};
AttendLayout layout(const AttendRowsParams& params);

}  // namespace vlkv::cuda
