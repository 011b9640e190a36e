#include "cuda/workspace.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "cuda/device/evict_args.cuh"
#include "cuda/device/score_args.cuh"

namespace vlkv {
namespace {

// Assigns offsets, and saturates at the largest size_t.
class Offsets {
 public:
  size_t take(size_t item, std::initializer_list<int64_t> extents) {
    size_t bytes = item;
    for (const int64_t extent : extents) {
      const auto count = static_cast<size_t>(std::max<int64_t>(extent, 0));
      if (__builtin_mul_overflow(bytes, count, &bytes)) bytes = kMost;
    }
    const size_t start = end_;
    if (bytes > kMost - kWorkspaceAlignment - end_) {
      end_ = kMost - kWorkspaceAlignment;
    } else {
      end_ += (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    }
    return start;
  }
  size_t end() const { return end_; }

 private:
  static constexpr size_t kMost =
      std::numeric_limits<size_t>::max() / kWorkspaceAlignment * kWorkspaceAlignment;
  size_t end_ = 0;
};

}  // namespace

namespace cuda {

ScoreLayout layout(const ScoreParams& p) {
  ScoreLayout layout;
  Offsets offsets;
  if (p.rows <= 0) return layout;
  layout.splits = std::min(parts(p.slots, kKeysPerSplit), kMostSplits);
  layout.tiles = parts(p.slots, kTileKeys);
  const int64_t group = p.kv_heads > 0 ? p.query_heads / p.kv_heads : 0;
  layout.row_blocks = parts(group * p.rows, kTileRows);
  // Rows of all heads, and row blocks of all heads: at most one per 64 rows, plus a partial one per head.
  const int64_t rows = p.slots > 0 ? p.rows : 0, heads = p.slots > 0 ? p.kv_heads : 0;
  const auto of_splits = {p.batch, p.query_heads, layout.splits, rows};
  const auto of_blocks = {p.batch, parts(std::max<int64_t>(p.query_heads, 0) * rows, kTileRows) + heads};
  layout.split_maximum = offsets.take(sizeof(float), of_splits);
  layout.split_sum = offsets.take(sizeof(float), of_splits);
  layout.row_facts = offsets.take(sizeof(cuda::RowFacts) * kTileRows, of_blocks);
  layout.block_last = offsets.take(sizeof(int32_t), of_blocks);
  layout.block_pairs = offsets.take(sizeof(int64_t), of_blocks);
  layout.tile_below = offsets.take(sizeof(int64_t), {p.batch, heads, layout.tiles});
  layout.size = offsets.end();
  return layout;
}

EvictLayout layout(const EvictParams& p) {
  EvictLayout layout;
  Offsets offsets;
  layout.shared_score = offsets.take(sizeof(float), {p.per_head ? 0 : p.batch, p.slots});
  // Fewer selections have more blocks each, so the memory is that of the most blocks and selections that as
  // many selections or fewer have.
  if (p.slots >= kPartedSlots) {
    const auto extent = [](int64_t size) { return std::clamp<int64_t>(size, 0, kPartedBlocks); };
    const int64_t selections = extent(p.batch) * (p.per_head ? extent(p.kv_heads) : 1);
    const int64_t most = std::min(p.slots / kSlotsPerPart, kMostParts);
    const int64_t parts = selections > 0 ? std::min(most, kPartedBlocks / selections) : 1;
    if (parts >= kLeastParts) layout.parts = parts;
    const int64_t blocks = std::min(selections * most, kPartedBlocks);
    layout.part_bins = offsets.take(sizeof(uint32_t), {blocks, kBins});
    layout.part_facts = offsets.take(sizeof(cuda::EvictPart), {blocks});
    layout.candidates =
        offsets.take(sizeof(uint32_t), {std::min(selections, kPartedBlocks / kLeastParts), p.slots});
  }
  layout.size = offsets.end();
  return layout;
}

AttendLayout layout(const AttendRowsParams& p) {
  AttendLayout layout;
  Offsets offsets;
  const int64_t group_rows = p.kv_heads > 0 ? p.query_heads / p.kv_heads * p.rows : 0;
  layout.few = group_rows <= kFewRows;
  layout.row_blocks = parts(group_rows, layout.few ? kFewRows : kManyRows);
  const int64_t most = std::clamp<int64_t>(parts(p.slots, kAttendKeysPerSplit), 1, kMostAttendSplits);
  const int64_t wanted = layout.few ? kFewRowsBlocks : kManyRowsBlocks;
  const int64_t heads = std::max<int64_t>(p.batch, 0) * std::max<int64_t>(p.kv_heads, 0);
  const int64_t blocks = layout.row_blocks >= wanted ? wanted : layout.row_blocks * heads;
  layout.splits = blocks > 0 ? std::min(parts(wanted, blocks), most) : 1;
  // With several splits there are fewer than twice the desired blocks, so their rows are bounded. The bound
  // is used even if there are fewer rows, as more rows may need fewer splits.
  constexpr int64_t kMostRows = 2 * std::max(kFewRows * kFewRowsBlocks, kManyRows * kManyRowsBlocks);
  int64_t rows = most > 1 ? most : 0;
  for (const int64_t extent : {p.batch, p.query_heads, p.rows}) {
    rows = std::min(kMostRows, rows * std::clamp<int64_t>(extent, 0, kMostRows));
  }
  layout.maximum = offsets.take(sizeof(float), {rows});
  layout.sum = offsets.take(sizeof(float), {rows});
  layout.partial = offsets.take(sizeof(float), {rows, p.head_dim});
  layout.size = offsets.end();
  return layout;
}

}  // namespace cuda

size_t cuda_workspace_size(const ScoreParams& params) { return cuda::layout(params).size; }
size_t cuda_workspace_size(const EvictParams& params) { return cuda::layout(params).size; }
size_t cuda_workspace_size(const AttendRowsParams& params) { return cuda::layout(params).size; }

}  // namespace vlkv
