#include "cuda/workspace.h"

#include <algorithm>
#include <limits>

namespace vlkv {
namespace {

constexpr size_t kAlignment = 256;

// Hands out offsets; stays at the largest size_t once that is reached.
class Offsets {
 public:
  size_t take(size_t item, std::initializer_list<int64_t> extents) {
    size_t bytes = item;
    for (const int64_t extent : extents) {
      const auto count = static_cast<size_t>(std::max<int64_t>(extent, 0));
      if (__builtin_mul_overflow(bytes, count, &bytes)) bytes = kMost;
    }
    const size_t start = end_;
    if (bytes > kMost - kAlignment - end_) {
      end_ = kMost - kAlignment;
    } else {
      end_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    return start;
  }
  size_t end() const { return end_; }

 private:
  static constexpr size_t kMost = std::numeric_limits<size_t>::max() / kAlignment * kAlignment;
  size_t end_ = 0;
};

int64_t parts(int64_t total, int64_t each) { return total <= 0 ? 0 : (total - 1) / each + 1; }

}  // namespace

namespace cuda {

ScoreLayout layout(const ScoreParams& p) {
  ScoreLayout layout;
  Offsets offsets;
  if (p.rows <= 0) return layout;
  layout.splits = std::min(parts(p.slots, kKeysPerSplit), kMostSplits);
  layout.tiles = parts(p.slots, kKeysPerTile);
  layout.maximum = offsets.take(sizeof(float), {p.batch, p.query_heads, layout.splits, p.rows});
  layout.sum = offsets.take(sizeof(float), {p.batch, p.query_heads, layout.splits, p.rows});
  layout.pairs = offsets.take(sizeof(int64_t), {p.batch, p.kv_heads, layout.tiles});
  layout.below = offsets.take(sizeof(int64_t), {p.batch, p.kv_heads, layout.tiles});
  layout.size = offsets.end();
  return layout;
}

EvictLayout layout(const EvictParams& p) {
  EvictLayout layout;
  Offsets offsets;
  layout.shared_score = offsets.take(sizeof(float), {p.per_head ? 0 : p.batch, p.slots});
  layout.size = offsets.end();
  return layout;
}

}  // namespace cuda

size_t cuda_workspace_size(const ScoreParams& params) { return cuda::layout(params).size; }
size_t cuda_workspace_size(const EvictParams& params) { return cuda::layout(params).size; }

}  // namespace vlkv
