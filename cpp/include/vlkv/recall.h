// Recall: the evicted keys and values of one prompt, in memory of the host, in 8 bits and in pages with
// bounds. Attend reads the few pages of each KV head that may matter to a query. Source: Quest (arXiv
// 2406.10774).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "vlkv/types.h"

namespace vlkv {

// A page holds `page` consecutive evicted slots of one KV head: keys and values as rows of kInt8
// (vlkv/types.h), and for each element of the keys, not rotated, the smallest and the largest as bfloat16,
// rounded outwards. Both bounds of a page with a NaN or an infinity are NaN.
//
// Attend chooses, for each prompt and KV head, `pages` of its pages, or all if it has no more: those with the
// largest rating, ties to the lower page. The rating is the maximum over the query heads of the KV head of
//   bound - logit,  bound = scale * sum over d of max(query[d] * low[d], query[d] * high[d]),
// where logit is the head's largest over the cache's slots: the weight that a token of the page can have
// beside the heaviest token of the cache. A rating that is NaN counts as infinity. The result is the softmax
// over the cache's slots and the chosen pages' together.
struct RecallSizes {
  int64_t layers = 0, kv_heads = 0, head_dim = 0;
  int64_t page = 0;   // slots of a page
  int64_t pages = 0;  // pages of a KV head that a call of Attend reads
};

class VLKV_API Recall {
 public:
  // One layer's pages, dense.
  struct Layer {
    int64_t tokens = 0, pages = 0;   // of each KV head; the last page may have fewer tokens
    std::vector<char> keys, values;  // [Hkv, tokens] rows of kInt8
    std::vector<uint16_t> bounds;    // [Hkv, pages, 2, D] bfloat16: smallest, largest
  };

  // Registers a new store; it is found by its id until it is destroyed. Throws InvalidArgument.
  static std::shared_ptr<Recall> make(const RecallSizes& sizes);
  ~Recall();
  Recall(const Recall&) = delete;
  Recall& operator=(const Recall&) = delete;

  // The store of that id, or null.
  static std::shared_ptr<const Recall> find(int64_t id);

  // Fills a layer, once, with the slots of `key` and `value` [1, Hkv, slots, D] that are not kept: `kept`
  // [Hkv, count], ascending in [0, slots). Rows of kInt8 are copied as they are; others are rounded. No call
  // of Attend may read the store meanwhile. Throws InvalidArgument with nothing written, or std::bad_alloc.
  void add(int64_t layer, const ConstView& key, const ConstView& value, int64_t slots, const int32_t* kept,
           int64_t count, int threads = 0);

  const RecallSizes& sizes() const { return sizes_; }
  const Layer& layer(int64_t layer) const { return layers_[static_cast<size_t>(layer)]; }
  int64_t id() const { return id_; }            // from 1 on; never used again
  int64_t bytes() const;                        // of all pages and bounds
  int64_t bytes_read() const { return read_; }  // by all calls of Attend so far
  void count(int64_t bytes) const { read_ += bytes; }

 private:
  Recall(const RecallSizes& sizes, int64_t id) : sizes_(sizes), layers_(sizes.layers), id_(id) {}

  RecallSizes sizes_;
  std::vector<Layer> layers_;
  int64_t id_;
  mutable std::atomic<int64_t> read_{0};
};

}  // namespace vlkv
