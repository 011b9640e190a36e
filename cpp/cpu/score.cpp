#include "vlkv/score.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/score_rows.h"
#include "cpu/thread_pool.h"

namespace vlkv {
namespace {

using cpu::Kernels;
using cpu::kTileKeys;
using cpu::Row;
using cpu::ScoreBlock;

constexpr int64_t kBlockBytes = int64_t{8} << 20;
constexpr int64_t kMostRows = 64;
constexpr int64_t kParallelWork = int64_t{1} << 18;  // multiply-adds that are worth a second thread
constexpr int32_t kAll = std::numeric_limits<int32_t>::max();

template <class T>
std::unique_ptr<T[]> allocate(int64_t count) {
  return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(count));
}

const char* at(const ConstView& view, int64_t b, int64_t h, int64_t s) {
  const int64_t element = b * view.stride_b + h * view.stride_h + s * view.stride_s;
  return static_cast<const char*>(view.data) + element * size_of(view.dtype);
}

// What every head of a call shares.
struct Plan {
  const ScoreParams& params;
  const Kernels& kernels;
  int64_t group;          // query heads of a KV head
  int64_t block_vectors;  // vectors of rows in a block
  int64_t tiles;          // tiles that the longest prompt reaches
  float query_factor;

  Plan(const ScoreParams& p, const std::vector<std::vector<Row>>& prompts)
      : params(p), kernels(cpu::kernels()) {
    group = p.query_heads / p.kv_heads;
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
};

// The memory that one head needs at a time, and one key tile in float32 for each worker.
class HeadScorer {
 public:
  HeadScorer(const Plan& plan, int workers)
      : plan_(plan), workers_(workers), tile_floats_(kTileKeys * plan.params.head_dim) {
    const int64_t lanes = plan.kernels.lanes, rows = plan.block_vectors * lanes;
    query_ = allocate<float>(rows * plan.params.head_dim);
    line_ = allocate<float>(plan.params.head_dim);
    rows_ = allocate<int32_t>(rows * 2 + plan.block_vectors * 2);
    weight_ = allocate<float>(plan.tiles * rows * kTileKeys);
    stats_ = allocate<float>(plan.tiles * rows * 2);
    if (plan.params.key.dtype != DType::kFloat32) keys_ = allocate<float>(tile_floats_ * workers);
  }

  // Adds to score; returns the pairs and how many of them are under the threshold.
  std::pair<int64_t, int64_t> run(const std::vector<Row>& rows, int64_t b, int64_t h) {
    const int64_t count = static_cast<int64_t>(rows.size()) * plan_.group;
    const int64_t step = plan_.block_vectors * plan_.kernels.lanes;
    int64_t pairs = 0;
    std::atomic<int64_t> under{0};
    for (int64_t begin = 0; begin < count; begin += step) {
      const int64_t keys = pack(rows, b, h, begin, std::min(begin + step, count)) + 1;
      run_block(b, h, keys, under);
      pairs += count_pairs();
    }
    // Nothing is below 0, and masked pairs, which the kernels tell by their weight of 0, would not be either.
    const bool counts = plan_.params.threshold >= std::numeric_limits<float>::min();
    return {pairs, counts ? under.load(std::memory_order_relaxed) : 0};
  }

 private:
  // Rows [begin, end) of (row, query head) into block_; returns the last key that any of them attends to.
  int64_t pack(const std::vector<Row>& rows, int64_t b, int64_t h, int64_t begin, int64_t end) {
    const int lanes = plan_.kernels.lanes;
    const int64_t dim = plan_.params.head_dim;
    const int64_t vectors = (end - begin + lanes - 1) / lanes;
    int32_t* position = rows_.get();
    int32_t* valid = position + plan_.block_vectors * lanes;
    int32_t* last = valid + plan_.block_vectors * lanes;
    int32_t* first = last + plan_.block_vectors;
    std::fill_n(last, vectors, -1);
    std::fill_n(first, vectors, kAll);
    for (int64_t slot = 0; slot < vectors * lanes; ++slot) {
      const int64_t vector = slot / lanes;
      float* to = query_.get() + vector * dim * lanes + slot % lanes;
      const bool used = begin + slot < end;
      position[slot] = kAll;
      valid[slot] = used ? -1 : 0;
      if (!used) {
        for (int64_t d = 0; d < dim; ++d) to[d * lanes] = 0.0F;
        continue;
      }
      const Row row = rows[static_cast<size_t>((begin + slot) / plan_.group)];
      const int64_t head = h * plan_.group + (begin + slot) % plan_.group;
      plan_.kernels.to_float(at(plan_.params.query, b, head, row.index), plan_.params.query.dtype,
                             line_.get(), dim);
      for (int64_t d = 0; d < dim; ++d) to[d * lanes] = line_[static_cast<size_t>(d)] * plan_.query_factor;
      position[slot] = row.position;
      last[vector] = std::max(last[vector], row.position);
      first[vector] = std::min(first[vector], row.position);
    }
    block_ = {.vectors = static_cast<int>(vectors),
              .head_dim = static_cast<int>(dim),
              .query = query_.get(),
              .position = position,
              .last = last,
              .first = first,
              .valid = valid,
              .weight = weight_.get(),
              .stats = stats_.get()};
    return *std::max_element(last, last + vectors);
  }

  void run_block(int64_t b, int64_t h, int64_t keys, std::atomic<int64_t>& under) {
    const int64_t tiles = (keys + kTileKeys - 1) / kTileKeys;
    const auto tile_keys = [&](int64_t t) {
      return static_cast<int>(std::min<int64_t>(kTileKeys, keys - t * kTileKeys));
    };
    cpu::parallel_for(workers_, tiles, 2, [&](int worker, int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) weigh(worker, b, h, static_cast<int>(t), tile_keys(t));
    });
    plan_.kernels.combine(block_, static_cast<int>(tiles), plan_.params.threshold);
    float* score = plan_.params.score + b * plan_.params.score_stride_b + h * plan_.params.score_stride_h;
    cpu::parallel_for(workers_, tiles, 32, [&](int, int64_t begin, int64_t end) {
      int64_t counted = 0;
      for (int64_t t = begin; t < end; ++t) {
        counted +=
            plan_.kernels.add_columns(block_, static_cast<int>(t), tile_keys(t), score + t * kTileKeys);
      }
      under.fetch_add(counted, std::memory_order_relaxed);
    });
  }

  void weigh(int worker, int64_t b, int64_t h, int tile, int keys) {
    const ConstView& view = plan_.params.key;
    const char* key = at(view, b, h, int64_t{tile} * kTileKeys);
    if (view.dtype == DType::kFloat32) {
      plan_.kernels.weigh(block_, tile, reinterpret_cast<const float*>(key), view.stride_s, keys);
      return;
    }
    const int64_t dim = plan_.params.head_dim;
    float* converted = keys_.get() + worker * tile_floats_;
    const bool dense = view.stride_s == dim;
    for (int n = 0; n < (dense ? 1 : keys); ++n) {
      plan_.kernels.to_float(key + n * view.stride_s * 2, view.dtype, converted + n * dim,
                             dense ? keys * dim : dim);
    }
    plan_.kernels.weigh(block_, tile, converted, dim, keys);
  }

  int64_t count_pairs() const {
    int64_t pairs = 0;
    for (int i = 0; i < block_.vectors * plan_.kernels.lanes; ++i) {
      if (block_.valid[i] != 0) pairs += int64_t{block_.position[i]} + 1;
    }
    return pairs;
  }

  const Plan& plan_;
  int workers_;
  int64_t tile_floats_;
  ScoreBlock block_;
  std::unique_ptr<float[]> query_, line_, weight_, stats_, keys_;
  std::unique_ptr<int32_t[]> rows_;
};

void clear(const ScoreParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.kv_heads && p.slots > 0; ++h) {
      std::fill_n(p.score + b * p.score_stride_b + h * p.score_stride_h, p.slots, 0.0F);
    }
    if (p.pairs) p.pairs[b] = 0;
    if (p.below) p.below[b] = 0;
  }
}

}  // namespace

void run_cpu(const ScoreParams& p) {
  validate(p);
  const std::vector<std::vector<Row>> prompts = cpu::read_rows(p);
  const Plan plan(p, prompts);
  const int64_t heads = p.batch * p.kv_heads;
  const int64_t work = plan.tiles * kTileKeys * plan.block_vectors * plan.kernels.lanes * p.head_dim;
  const int threads = work * heads < kParallelWork ? 1 : cpu::resolve_threads(p.threads);

  // Whole heads to each thread where there are enough of them; else all threads share each head's keys.
  const bool by_head = heads >= 2 * threads || heads % threads == 0 || work < kParallelWork;
  const int scorers = by_head ? static_cast<int>(std::min<int64_t>(threads, std::max(heads, int64_t{1}))) : 1;
  std::vector<HeadScorer> scorer;
  scorer.reserve(static_cast<size_t>(scorers));
  for (int i = 0; i < scorers; ++i) scorer.emplace_back(plan, by_head ? 1 : threads);
  std::vector<std::pair<int64_t, int64_t>> counts(static_cast<size_t>(heads));

  if (!p.accumulate) clear(p);
  cpu::parallel_for(scorers, heads, 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      const int64_t b = head / p.kv_heads, h = head % p.kv_heads;
      counts[static_cast<size_t>(head)] =
          scorer[static_cast<size_t>(worker)].run(prompts[static_cast<size_t>(b)], b, h);
    }
  });
  for (int64_t b = 0; b < p.batch; ++b) {
    int64_t pairs = p.accumulate && p.pairs ? p.pairs[b] : 0;
    int64_t below = p.accumulate && p.below ? p.below[b] : 0;
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      pairs += counts[static_cast<size_t>(b * p.kv_heads + h)].first;
      below += counts[static_cast<size_t>(b * p.kv_heads + h)].second;
    }
    if (p.pairs) p.pairs[b] = pairs;
    if (p.below) p.below[b] = below;
    if (p.sparsity)
      p.sparsity[b] =
          pairs > 0 ? static_cast<float>(static_cast<double>(below) / static_cast<double>(pairs)) : 0.0F;
  }
}

}  // namespace vlkv
