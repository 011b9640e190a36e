#include "cpu/attend_many.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/rotate.h"

namespace vlkv::cpu {
namespace {

constexpr int64_t kBlockQueries = VLKV_ATTEND_BLOCK_QUERIES;  // that share each read of a tile
constexpr int64_t kHalfBlock = 2 * kBlockQueries;             // and its rounding to bfloat16
constexpr int64_t kMostWorkers = 64;

// Whether a row's own key and value are multiplied as the cache has them: it does not round them, or not more
// than the products do.
bool multiplied_as_given(DType cache, bool half) {
  return cache == DType::kFloat32 || (half && cache == DType::kBFloat16);
}

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

}  // namespace

double log2_factor(const AttendParams& p) {
  constexpr double kLog2E = 1.4426950408889634;
  const double scale = p.scale != 0.0F ? p.scale : 1.0 / std::sqrt(static_cast<double>(p.head_dim));
  return scale * kLog2E;
}

AttendMany::AttendMany(const AttendParams& p)
    : p_(p),
      kernels_(kernels()),
      half_(p.precision == Precision::kBFloat16 && p.head_dim % 2 == 0 ? kernels_.half_attend : nullptr),
      factor_(log2_factor(p)),
      group_(p.query_heads / p.kv_heads),
      block_(
          std::min(p.rows, std::max(int64_t{1}, (half_ != nullptr ? kHalfBlock : kBlockQueries) / group_))),
      blocks_((p.rows + block_ - 1) / block_),
      workers_(std::min(kMostWorkers, p.batch * p.kv_heads * blocks_)),
      width_(int64_t{kernels_.attend_vectors} * kernels_.lanes),
      most_(up(block_ * group_, width_)),
      own_(multiplied_as_given(p.cache, half_ != nullptr) ? 0 : 1) {
  const bool own_tile = half_ != nullptr || p.cache != DType::kFloat32;
  const int64_t tile = own_tile ? 2 * kAttendBlockKeys * p.head_dim : 0;
  floats_ = up(most_ * (2 + 2 * p.head_dim) + kAttendBlockKeys * width_ + tile + 2 * p.head_dim, 16);
  memory_ = allocate<float>(workers_ * floats_);
  seen_ = allocate<int32_t>(workers_ * most_);
}

AttendMany::Memory AttendMany::memory_of(int64_t worker) const {
  Memory memory{};
  memory.query = memory_.get() + worker * floats_;
  memory.state = memory.query + most_ * p_.head_dim;
  memory.weight = memory.state + most_ * (2 + p_.head_dim);
  memory.tile = memory.weight + kAttendBlockKeys * width_;
  memory.seen = seen_.get() + worker * most_;
  return memory;
}

void AttendMany::run(int64_t worker) {
  const Memory memory = memory_of(worker);
  const int64_t heads = p_.batch * p_.kv_heads;
  // Later blocks attend to more keys, so they are taken first.
  for (int64_t i = next_++; i < heads * blocks_; i = next_++) {
    run_block(memory, i % heads, (blocks_ - 1 - i / heads) * block_);
  }
}

// Queries [first, first + count) of a block.
AttendQueries AttendMany::queries_of(const Memory& memory, int64_t first, int64_t count) const {
  AttendQueries queries;
  queries.vectors = static_cast<int>((count + kernels_.lanes - 1) / kernels_.lanes);
  queries.head_dim = static_cast<int>(p_.head_dim);
  queries.query = memory.query + first * p_.head_dim;
  queries.seen = memory.seen + first;
  queries.least = memory.seen[first], queries.most = memory.seen[first + count - 1];
  queries.weight = memory.weight;
  queries.state = memory.state + first * (2 + p_.head_dim);
  return queries;
}

// Rows [begin, begin + block_) of one KV head.
void AttendMany::run_block(const Memory& memory, int64_t head, int64_t begin) const {
  const int64_t b = head / p_.kv_heads, h = head % p_.kv_heads, dim = p_.head_dim;
  const int64_t first = first_slot(p_, b), end = std::min(p_.rows, begin + block_);
  const int64_t valid = std::clamp(p_.last[b] + 1 - first, begin, end), count = (valid - begin) * group_;
  for (int64_t row = valid; row < end; ++row) {
    std::fill_n(p_.result + ((b * p_.rows + row) * p_.kv_heads + h) * group_ * dim, group_ * dim, 0.0F);
  }
  if (count == 0) return;
  const float* from = p_.query + ((b * p_.rows + begin) * p_.kv_heads + h) * group_ * dim;
  float* to = p_.result + (from - p_.query);
  std::fill_n(memory.seen, most_, std::numeric_limits<int32_t>::max());
  const int64_t slots = first + valid - own_;
  for (int64_t i = 0; i < count; ++i) {
    memory.seen[i] = static_cast<int32_t>(first + begin + i / group_ + 1 - own_);
  }
  for (int64_t i = 0; i < count; i += width_) pack(memory, from, i, std::min(width_, count - i));
  const auto multiply = half_ != nullptr ? half_->attend_block : kernels_.attend_block;
  const int64_t row = ((b * p_.rows + begin) * p_.kv_heads + h) * dim;
  if (own_ > 0) attend_to_own(memory, p_.key + row, p_.value + row, count);
  for (int64_t slot = 0; slot < slots; slot += kAttendBlockKeys) {
    const AttendKeys tile = tile_of(memory, head, slot, slots);
    for (int64_t i = 0; i < count; i += width_) {
      const AttendQueries queries = queries_of(memory, i, std::min(width_, count - i));
      if (queries.most > slot) multiply(queries, tile);
    }
  }
  for (int64_t i = 0; i < count; i += width_) unpack(memory, to, i, std::min(width_, count - i));
}

// Elements from query 0 of a block to query i, in the query and in the result.
int64_t AttendMany::offset(int64_t i) const {
  return (i / group_ * p_.kv_heads * group_ + i % group_) * p_.head_dim;
}

void AttendMany::pack(const Memory& memory, const float* from, int64_t first, int64_t count) const {
  const AttendQueries queries = queries_of(memory, first, count);
  const int64_t width = int64_t{queries.vectors} * kernels_.lanes, dim = p_.head_dim;
  const int64_t steps = half_ != nullptr ? dim / 2 : dim;
  float *to = memory.query + first * dim, *line = memory.tile, *rounded = line + dim;
  for (int64_t i = 0; i < width; ++i) {
    std::fill_n(line, dim, 0.0F);
    if (i < count) {
      const float* query = from + offset(first + i);
      for (int64_t d = 0; d < dim; ++d) line[d] = static_cast<float>(factor_ * query[d]);
      if (p_.cache == DType::kInt8) rotate(line, 1, dim);
    }
    // A pair of bfloat16 takes the place of a float.
    if (half_ != nullptr) half_->round(line, dim, reinterpret_cast<uint16_t*>(rounded));
    const float* numbers = half_ != nullptr ? rounded : line;
    for (int64_t n = 0; n < steps; ++n) std::memcpy(to + n * width + i, numbers + n, sizeof(*to));
  }
  std::fill_n(queries.state, width, -std::numeric_limits<float>::infinity());
  std::fill_n(queries.state + width, (1 + dim) * width, 0.0F);
}

// Element d of a packed query.
float AttendMany::element(const AttendQueries& queries, int64_t width, int64_t lane, int64_t d) const {
  if (half_ == nullptr) return static_cast<const float*>(queries.query)[d * width + lane];
  const auto* pairs = static_cast<const uint16_t*>(queries.query);
  return std::bit_cast<float>(uint32_t{pairs[(d / 2 * width + lane) * 2 + d % 2]} << 16);
}

// Begins the states of a block's queries with each one's own row, `key` and `value` being those of query 0.
void AttendMany::attend_to_own(const Memory& memory, const float* key, const float* value,
                               int64_t count) const {
  const int64_t dim = p_.head_dim;
  float *query = memory.tile, *own = query + dim, *state = own + 2 * dim;
  AttendPart part;
  part.query = query, part.state = state, part.head_dim = static_cast<int>(dim), part.heads = part.keys = 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = i / width_ * width_, row = i / group_ * p_.kv_heads * dim;
    part.key = key + row, part.value = value + row;
    if (p_.cache == DType::kInt8) {
      if (i % group_ == 0) {
        std::copy_n(key + row, dim, own);
        std::copy_n(value + row, dim, own + dim);
        rotate(own, 2, dim);
      }
      part.key = own, part.value = own + dim;
    }
    const AttendQueries to = queries_of(memory, first, std::min(width_, count - first));
    const int64_t width = int64_t{to.vectors} * kernels_.lanes, lane = i - first;
    for (int64_t d = 0; d < dim; ++d) query[d] = element(to, width, lane, d);
    kernels_.attend(part);
    for (int64_t n = 0; n < 2 + dim; ++n) to.state[n * width + lane] = state[n];
  }
}

// Slots [first, first + kAttendBlockKeys) of `slots`, in the type that is multiplied.
AttendKeys AttendMany::tile_of(const Memory& memory, int64_t head, int64_t first, int64_t slots) const {
  AttendKeys tile;
  tile.stride = p_.head_dim, tile.first = static_cast<int>(first);
  tile.keys = static_cast<int>(std::min<int64_t>(kAttendBlockKeys, slots - first));
  const char *key = row_of(p_, p_.key_cache, head, first), *value = row_of(p_, p_.value_cache, head, first);
  const int64_t numbers = kAttendBlockKeys * p_.head_dim;
  if (half_ == nullptr) {
    tile.key = wide(key, tile.keys, memory.tile), tile.value = wide(value, tile.keys, memory.tile + numbers);
  } else {
    auto* space = reinterpret_cast<uint16_t*>(memory.tile);
    float* line = memory.tile + 2 * numbers;
    tile.key = narrow(key, tile.keys, line, space);
    const uint16_t* rows = narrow(value, tile.keys, line, space + numbers);
    half_->pair_rows(rows, tile.keys, static_cast<int>(p_.head_dim), space + 2 * numbers);
    tile.value = space + 2 * numbers;
  }
  return tile;
}

// Rows of the cache in float32: themselves, or widened.
const float* AttendMany::wide(const char* from, int64_t rows, float* to) const {
  if (p_.cache == DType::kFloat32) return reinterpret_cast<const float*>(from);
  const int64_t step = row_bytes(p_.cache, p_.head_dim);
  for (int64_t i = 0; i < rows; ++i) {
    kernels_.to_float(from + i * step, p_.cache, to + i * p_.head_dim, p_.head_dim);
  }
  return to;
}

// Rows of the cache in bfloat16: themselves, or rounded. `line` has room for one in float32.
const uint16_t* AttendMany::narrow(const char* from, int64_t rows, float* line, uint16_t* to) const {
  if (p_.cache == DType::kBFloat16) return reinterpret_cast<const uint16_t*>(from);
  const int64_t at_once = p_.cache == DType::kFloat32 ? rows : 1, step = row_bytes(p_.cache, p_.head_dim);
  for (int64_t i = 0; i < rows; i += at_once) {
    half_->round(wide(from + i * step, 1, line), at_once * p_.head_dim, to + i * p_.head_dim);
  }
  return to;
}

void AttendMany::unpack(const Memory& memory, float* to, int64_t first, int64_t count) const {
  const AttendQueries queries = queries_of(memory, first, count);
  const int64_t width = int64_t{queries.vectors} * kernels_.lanes, dim = p_.head_dim;
  const float* sums = queries.state + width;
  for (int64_t i = 0; i < count; ++i) {
    float* result = to + offset(first + i);
    for (int64_t d = 0; d < dim; ++d) result[d] = sums[(1 + d) * width + i] / sums[i];
    if (p_.cache == DType::kInt8) rotate(result, 1, dim);
  }
}

}  // namespace vlkv::cpu
