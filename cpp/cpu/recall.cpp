#include "cpu/recall.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "cpu/memory.h"
#include "cpu/rotate.h"
#include "cpu/thread_pool.h"

namespace vlkv {
namespace {

constexpr uint16_t kNan = 0x7fc0;

// The nearest bfloat16 that is not above x, or not below it if `up`.
uint16_t outwards(float x, bool up) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const bool exact = (bits & 0xffffU) == 0, negative = bits >> 31 != 0;
  return static_cast<uint16_t>((bits >> 16) + (!exact && negative != up ? 1 : 0));
}

const char* row_at(const ConstView& view, int64_t head, int64_t slot) {
  const int64_t item = view.dtype == DType::kInt8 ? 1 : size_of(view.dtype);
  return static_cast<const char*>(view.data) + (head * view.stride_h + slot * view.stride_s) * item;
}

// Fills the pages of one KV head.
struct Filling {
  const cpu::Kernels& kernels;
  Recall::Layer& to;
  int64_t dim, page;

  // Stores a row of a cache, and leaves its elements, not rotated, in `line`.
  void store(const ConstView& from, int64_t head, int64_t slot, char* row, float* line, bool wanted) const {
    const char* source = row_at(from, head, slot);
    if (from.dtype == DType::kInt8) {
      std::copy_n(source, row_bytes(DType::kInt8, dim), row);
      if (!wanted) return;
      kernels.to_float(source, DType::kInt8, line, dim);
      cpu::rotate(line, 1, dim);
      return;
    }
    kernels.to_float(source, from.dtype, line, dim);
    float* rotated = line + dim;
    std::copy_n(line, dim, rotated);
    cpu::rotate(rotated, 1, dim);
    kernels.from_float(rotated, DType::kInt8, row, dim);
  }

  void head(const ConstView& key, const ConstView& value, int64_t head, int64_t slots, const int32_t* kept,
            int64_t count) const {
    const auto line = cpu::allocate<float>(4 * dim);
    float *low = line.get() + 2 * dim, *high = low + dim;
    const int64_t row = row_bytes(DType::kInt8, dim);
    int64_t token = 0;
    bool finite = true;
    const auto close = [&](int64_t number) {
      uint16_t* bounds = to.bounds.data() + (head * to.pages + number) * 2 * dim;
      for (int64_t d = 0; d < dim; ++d) {
        bounds[d] = finite ? outwards(low[d], false) : kNan;
        bounds[dim + d] = finite ? outwards(high[d], true) : kNan;
      }
    };
    for (int64_t slot = 0, next = 0; slot < slots; ++slot) {
      if (next < count && kept[next] == slot) {
        ++next;
        continue;
      }
      if (token % page == 0) {
        if (token > 0) close(token / page - 1);
        std::fill_n(low, dim, std::numeric_limits<float>::infinity());
        std::fill_n(high, dim, -std::numeric_limits<float>::infinity());
        finite = true;
      }
      const int64_t at = (head * to.tokens + token++) * row;
      store(value, head, slot, to.values.data() + at, line.get(), false);
      store(key, head, slot, to.keys.data() + at, line.get(), true);
      for (int64_t d = 0; d < dim; ++d) {
        const float x = line[static_cast<size_t>(d)];
        finite = finite && std::isfinite(x);
        low[d] = std::min(low[d], x), high[d] = std::max(high[d], x);
      }
    }
    if (token > 0) close((token - 1) / page);
  }
};

}  // namespace

void Recall::add(int64_t layer, const ConstView& key, const ConstView& value, int64_t slots,
                 const int32_t* kept, int64_t count, int threads) {
  const Check check("recall");
  check.range("layer", layer, 0, sizes_.layers - 1);
  check.range("slots", slots, 0, kLargestDim);
  check.range("count", count, 0, slots);
  check.cache("key", key, slots);
  check.cache("value", value, slots);
  check.require(kept != nullptr || count == 0, "kept is null");
  check.threads(threads);
  Layer& to = layers_[static_cast<size_t>(layer)];
  check.require(to.tokens == 0, "layer ", layer, " is filled already");
  for (int64_t i = 0; i < sizes_.kv_heads * count; ++i) {
    const bool first = i % count == 0;
    check.require(kept[i] >= 0 && kept[i] < slots && (first || kept[i] > kept[i - 1]), "kept has ", kept[i],
                  ", not ascending slots from 0 to ", slots - 1);
  }
  Layer made;
  made.tokens = slots - count, made.pages = (made.tokens + sizes_.page - 1) / sizes_.page;
  const int64_t rows = sizes_.kv_heads * made.tokens * row_bytes(DType::kInt8, sizes_.head_dim);
  made.keys.resize(static_cast<size_t>(rows)), made.values.resize(static_cast<size_t>(rows));
  made.bounds.resize(static_cast<size_t>(sizes_.kv_heads * made.pages * 2 * sizes_.head_dim));
  const Filling filling{cpu::kernels(), made, sizes_.head_dim, sizes_.page};
  cpu::parallel_for(cpu::resolve_threads(threads), sizes_.kv_heads, 1, [&](int, int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      filling.head(key, value, head, slots, kept + head * count, count);
    }
  });
  to = std::move(made);
}

namespace cpu {

int64_t pages_read(const Recall& recall, int64_t layer) {
  return std::min(recall.sizes().pages, recall.layer(layer).pages);
}

void attend_pages(const RecallPart& part, const Kernels& kernels, float* states) {
  const Recall::Layer& layer = part.recall->layer(part.layer);
  const int64_t dim = part.recall->sizes().head_dim, page = part.recall->sizes().page,
                row = row_bytes(DType::kInt8, dim);
  const int64_t chosen = pages_read(*part.recall, part.layer);
  const auto order = allocate<int64_t>(layer.pages);
  std::iota(order.get(), order.get() + layer.pages, int64_t{0});
  int64_t bounds = 0;  // bytes that are read to choose
  if (chosen < layer.pages) {
    const auto rating = allocate<float>(layer.pages);
    kernels.rate_pages({part.query, part.largest, layer.bounds.data() + part.kv_head * layer.pages * 2 * dim,
                        static_cast<int>(part.heads), static_cast<int>(layer.pages), static_cast<int>(dim)},
                       rating.get());
    std::nth_element(
        order.get(), order.get() + chosen - 1, order.get() + layer.pages, [&](int64_t a, int64_t b) {
          const float first = rating[static_cast<size_t>(a)], second = rating[static_cast<size_t>(b)];
          return first > second || (first == second && a < b);
        });
    std::sort(order.get(), order.get() + chosen);
    bounds = layer.pages * 2 * dim * int64_t{sizeof(uint16_t)};
  }
  int64_t tokens = 0;
  for (int64_t i = 0; i < chosen; ++i) {
    const int64_t begin = order[static_cast<size_t>(i)] * page,
                  at = (part.kv_head * layer.tokens + begin) * row;
    AttendPart own;
    own.query = part.rotated, own.key = layer.keys.data() + at, own.value = layer.values.data() + at;
    own.type = DType::kInt8, own.heads = static_cast<int>(part.heads);
    own.keys = static_cast<int>(std::min(page, layer.tokens - begin));
    own.head_dim = static_cast<int>(dim), own.state = states + i * part.heads * (2 + dim);
    kernels.attend(own);
    tokens += own.keys;
  }
  part.recall->count(2 * tokens * row + bounds);
}

}  // namespace cpu
}  // namespace vlkv
