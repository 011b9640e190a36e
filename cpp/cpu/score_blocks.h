// Score of whole KV heads, a block of query rows at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/score_rows.h"
#include "cpu/thread_pool.h"
#include "vlkv/score.h"

namespace vlkv::cpu {

// Sizes that all heads of a call share.
struct ScorePlan {
  ScorePlan(const ScoreParams& params, const std::vector<std::vector<Row>>& prompts);

  int64_t block_bytes() const { return tiles * block_vectors * kTileKeys * kernels.lanes * 4; }

  const ScoreParams& params;
  const std::vector<std::vector<Row>>& prompts;
  const Kernels& kernels;
  int64_t group;          // query heads of a KV head
  int64_t block_vectors;  // vectors of rows in a block
  int64_t tiles;          // tiles that the longest prompt reaches
  float query_factor;
};

// The contribution of a head's rows to its prompt's counts.
struct HeadCounts {
  int64_t pairs = 0;
  std::atomic<int64_t> under{0};
};

// The memory for one head at a time, and one key tile in float32 for each worker. A block's weights are
// stored until its rows' sums are known. The sweep over the keys that then adds them up, tile by tile, also
// replaces them by the next block's weights; sweeps alternate their direction. Both keep more data in the
// caches.
class BlockScorer {
 public:
  BlockScorer(const ScorePlan& plan, int workers);

  // Adds heads [begin, end), counted over all prompts, to score and to counts.
  void run(int64_t begin, int64_t end, HeadCounts* counts);

 private:
  struct Block {
    Array<float> query, whole;
    Array<int32_t> rows;
    ScoreBlock view;
    int64_t b = 0, h = 0, keys = 0;  // keys: up to the last that any row attends to
    HeadCounts* counts = nullptr;
    int64_t tiles() const { return (keys + kTileKeys - 1) / kTileKeys; }
    int tile_keys(int64_t tile) const;
  };

  void pack(Block& block, const std::vector<Row>& rows, int64_t begin, int64_t end);
  void sweep(const Block* older, const Block* newer);
  void weigh(const Block& block, int worker, int tile, int next);
  void add(const Block& block, int tile);

  const ScorePlan& plan_;
  Ranges ranges_;
  int64_t tile_floats_;
  bool upwards_ = true;
  Block blocks_[2];
  Array<float> line_, weight_, stats_, keys_;
};

}  // namespace vlkv::cpu
