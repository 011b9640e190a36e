#include "cpu/score_blocks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/rotate.h"

namespace vlkv::cpu {
namespace {

constexpr int64_t kBlockBytes = int64_t{32} << 20;
constexpr int64_t kMostRows = VLKV_SCORE_MOST_ROWS;
constexpr int64_t kRowsAhead = 24;  // keys past a tile that the kernels may prefetch
constexpr int32_t kAll = std::numeric_limits<int32_t>::max();

const char* at(const ConstView& view, int64_t b, int64_t h, int64_t s) {
  const int64_t element = b * view.stride_b + h * view.stride_h + s * view.stride_s;
  return static_cast<const char*>(view.data) + element * size_of(view.dtype);
}

}  // namespace

ScorePlan::ScorePlan(const ScoreParams& p, const std::vector<std::vector<Row>>& all)
    : params(p), prompts(all), kernels(cpu::kernels()), group(p.query_heads / p.kv_heads) {
  int64_t keys = 0, rows = 0;
  for (const std::vector<Row>& prompt : prompts) {
    rows = std::max(rows, static_cast<int64_t>(prompt.size()) * group);
    for (const Row& row : prompt) keys = std::max(keys, int64_t{row.position} + 1);
  }
  const int64_t lanes = kernels.lanes;
  const int64_t fitting = kBlockBytes / (std::max(keys, int64_t{1}) * 4 * lanes);
  const int64_t most = std::min(kMostRows / lanes, (rows + lanes - 1) / lanes);
  block_vectors = std::max(int64_t{1}, std::min(std::max(fitting, int64_t{2}), most));
  tiles = (keys + kTileKeys - 1) / kTileKeys;
  const float scale = p.scale > 0.0F ? p.scale : 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  query_factor = scale * 1.44269504F;
}

int BlockScorer::Block::tile_keys(int64_t tile) const {
  return static_cast<int>(std::min<int64_t>(kTileKeys, keys - tile * kTileKeys));
}

BlockScorer::BlockScorer(const ScorePlan& plan, int workers)
    : plan_(plan), ranges_(workers), tile_floats_((kTileKeys + kRowsAhead) * plan.params.head_dim) {
  const int64_t vectors = plan.block_vectors, rows = vectors * plan.kernels.lanes;
  line_ = allocate<float>(plan.params.head_dim);
  weight_ = allocate<float>(plan.tiles * rows * kTileKeys);
  stats_ = allocate<float>(plan.tiles * rows * 2);
  if (plan.params.key.dtype != DType::kFloat32) keys_ = allocate<float>(tile_floats_ * workers);
  for (Block& block : blocks_) {
    block.query = allocate<float>(rows * plan.params.head_dim);
    block.whole = allocate<float>(rows * 2);
    block.rows = allocate<int32_t>(rows * 2 + vectors * 2);
    int32_t* numbers = block.rows.get();
    block.view = {.head_dim = static_cast<int>(plan.params.head_dim),
                  .tile_vectors = static_cast<int>(vectors),
                  .query = block.query.get(),
                  .position = numbers,
                  .last = numbers + rows * 2,
                  .first = numbers + rows * 2 + vectors,
                  .valid = numbers + rows,
                  .whole = block.whole.get(),
                  .weight = weight_.get(),
                  .stats = stats_.get()};
  }
}

void BlockScorer::run(int64_t begin, int64_t end, HeadCounts* counts) {
  const int64_t step = plan_.block_vectors * plan_.kernels.lanes;
  Block *older = nullptr, *newer = &blocks_[0];
  for (int64_t head = begin; head < end; ++head) {
    const std::vector<Row>& rows = plan_.prompts[static_cast<size_t>(head / plan_.params.kv_heads)];
    const int64_t count = static_cast<int64_t>(rows.size()) * plan_.group;
    for (int64_t row = 0; row < count; row += step) {
      newer->b = head / plan_.params.kv_heads, newer->h = head % plan_.params.kv_heads;
      newer->counts = &counts[head];
      pack(*newer, rows, row, std::min(row + step, count));
      sweep(older, newer);
      plan_.kernels.combine(newer->view, static_cast<int>(newer->tiles()));
      for (int64_t i = 0; i < newer->view.vectors * plan_.kernels.lanes; ++i) {
        if (newer->view.valid[i] != 0) newer->counts->pairs += int64_t{newer->view.position[i]} + 1;
      }
      older = newer;
      newer = older == &blocks_[0] ? &blocks_[1] : &blocks_[0];
    }
  }
  if (older != nullptr) sweep(older, nullptr);
}

// Rows [begin, end) of (row, query head).
void BlockScorer::pack(Block& block, const std::vector<Row>& rows, int64_t begin, int64_t end) {
  const int64_t lanes = plan_.kernels.lanes, dim = plan_.params.head_dim;
  const int64_t vectors = (end - begin + lanes - 1) / lanes;
  int32_t* position = block.rows.get();
  int32_t* valid = position + plan_.block_vectors * lanes;
  int32_t* last = valid + plan_.block_vectors * lanes;
  int32_t* first = last + plan_.block_vectors;
  std::fill_n(position, vectors * lanes, kAll);
  std::fill_n(valid, vectors * lanes, 0);
  std::fill_n(last, vectors, -1);
  std::fill_n(first, vectors, kAll);
  std::fill_n(block.query.get(), vectors * lanes * dim, 0.0F);
  for (int64_t slot = 0; slot < end - begin; ++slot) {
    const int64_t vector = slot / lanes;
    const int64_t group = vector / plan_.kernels.group * plan_.kernels.group;
    const int64_t together = std::min<int64_t>(plan_.kernels.group, vectors - group) * lanes;
    const Row row = rows[static_cast<size_t>((begin + slot) / plan_.group)];
    const int64_t head = block.h * plan_.group + (begin + slot) % plan_.group;
    plan_.kernels.to_float(at(plan_.params.query, block.b, head, row.index), plan_.params.query.dtype,
                           line_.get(), dim);
    if (plan_.params.key.dtype == DType::kInt8) rotate(line_.get(), 1, dim);
    float* to = block.query.get() + group * lanes * dim + (slot - group * lanes);
    for (int64_t d = 0; d < dim; ++d) to[d * together] = line_[static_cast<size_t>(d)] * plan_.query_factor;
    position[slot] = row.position;
    valid[slot] = -1;
    last[vector] = std::max(last[vector], row.position);
    first[vector] = std::min(first[vector], row.position);
  }
  block.view.vectors = static_cast<int>(vectors);
  block.keys = int64_t{*std::max_element(last, last + vectors)} + 1;
}

// Over all tiles: adds what the older block's rows give, then weighs the newer block's.
void BlockScorer::sweep(const Block* older, const Block* newer) {
  const int64_t old_tiles = older != nullptr ? older->tiles() : 0;
  const int64_t new_tiles = newer != nullptr ? newer->tiles() : 0;
  const int64_t tiles = std::max(old_tiles, new_tiles);
  ranges_.run(tiles, [&](int worker, int64_t i, bool more) {
    const int tile = static_cast<int>(upwards_ ? i : tiles - 1 - i);
    if (tile < old_tiles) add(*older, tile);
    if (tile < new_tiles) weigh(*newer, worker, tile, !more ? 0 : upwards_ ? 1 : -1);
  });
  upwards_ = !upwards_;
}

void BlockScorer::weigh(const Block& block, int worker, int tile, int next) {
  const ConstView& view = plan_.params.key;
  const char* key = at(view, block.b, block.h, int64_t{tile} * kTileKeys);
  const int keys = block.tile_keys(tile);
  if (view.dtype == DType::kFloat32) {
    plan_.kernels.weigh(block.view, {reinterpret_cast<const float*>(key), view.stride_s, tile, keys, next});
    return;
  }
  const int64_t dim = plan_.params.head_dim;
  float* converted = keys_.get() + worker * tile_floats_;
  const bool dense = view.stride_s == dim && view.dtype != DType::kInt8;
  for (int n = 0; n < (dense ? 1 : keys); ++n) {
    plan_.kernels.to_float(key + n * view.stride_s * size_of(view.dtype), view.dtype, converted + n * dim,
                           dense ? keys * dim : dim);
  }
  plan_.kernels.weigh(block.view, {converted, dim, tile, keys, 0});
}

void BlockScorer::add(const Block& block, int tile) {
  const ScoreParams& p = plan_.params;
  float* score =
      p.score + block.b * p.score_stride_b + block.h * p.score_stride_h + int64_t{tile} * kTileKeys;
  const int64_t under =
      plan_.kernels.add_columns(block.view, tile, block.tile_keys(tile), p.threshold, score);
  // With a threshold of 0 no pair is below it, including masked pairs, which have a weight of 0.
  if (p.threshold >= std::numeric_limits<float>::min()) {
    block.counts->under.fetch_add(under, std::memory_order_relaxed);
  }
}

}  // namespace vlkv::cpu
