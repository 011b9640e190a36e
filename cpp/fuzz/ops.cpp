// Fuzzes the C entry points with arbitrary shapes, strides, lengths and contents: each call either refuses or
// stays inside its buffers, which the sanitizers check, and its results follow the header.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "vlkv/c_api.h"

namespace {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() { return at_ < end_ ? *at_++ : uint8_t{0}; }

  // Usually a small number; sometimes any number.
  int64_t number(int64_t small) {
    const uint8_t kind = byte();
    if (kind < 250) return kind % (small + 1);
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<int64_t>(kind < 252 ? value % 100000 : value);
  }

  template <class T>
  std::vector<T> fill(size_t count) {
    std::vector<T> values(count);
    auto* to = reinterpret_cast<uint8_t*>(values.data());
    for (size_t i = 0; i < count * sizeof(T); ++i) to[i] = byte();
    return values;
  }

 private:
  const uint8_t *at_, *end_;
};

// A product that may overflow without undefined behaviour.
int64_t product(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}

struct Memory {
  std::vector<std::unique_ptr<uint8_t[]>> blocks;

  // A buffer of exactly the size that the tensor claims.
  vlkv_tensor tensor(Bytes& in, int64_t heads, int64_t slots, int64_t dim, int64_t batch, bool dense) {
    vlkv_tensor t{};
    t.dtype = in.byte() % 16 == 0 ? in.byte() : in.byte() % 3;
    t.stride_s = dense ? dim : in.number(20);
    t.stride_h = dense ? product(dim, slots) : in.number(200);
    t.stride_b = dense ? product(product(dim, slots), heads) : in.number(2000);
    const int64_t item = t.dtype == VLKV_FLOAT32 ? 4 : 2;
    const double dense_bytes = 1.0 * static_cast<double>(batch) * static_cast<double>(heads) *
                               static_cast<double>(slots) * static_cast<double>(dim) *
                               static_cast<double>(item);
    const double needed = dense ? dense_bytes : static_cast<double>(in.number(9000));
    t.bytes = needed < 0 || needed > 1 << 20 ? 0 : static_cast<uint64_t>(needed);
    blocks.push_back(std::make_unique<uint8_t[]>(t.bytes));
    const uint8_t seed = in.byte();
    for (uint64_t i = 0; i < t.bytes; ++i)
      blocks.back()[i] = static_cast<uint8_t>((seed * (i + 1) * 37) >> 3);
    for (int i = 0; i < 8 && t.bytes > 0; ++i) blocks.back()[in.byte() % t.bytes] = in.byte();
    t.data = blocks.back().get();
    return t;
  }
};

void check(bool holds) {
  if (!holds) std::abort();
}

size_t count_of(int64_t a, int64_t b = 1, int64_t c = 1) {
  const double count = static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c);
  return count < 0 || count > 100000 ? 0 : static_cast<size_t>(count);
}

void fuzz_score(Bytes& in) {
  Memory memory;
  vlkv_score_params p{};
  p.batch = in.number(3), p.kv_heads = in.number(3), p.query_heads = product(p.kv_heads, in.number(3));
  p.rows = in.number(20), p.slots = in.number(220), p.head_dim = in.number(20);
  const bool dense = in.byte() % 4 != 0;
  p.query = memory.tensor(in, p.query_heads, p.rows, p.head_dim, p.batch, dense);
  p.key = memory.tensor(in, p.kv_heads, p.slots, p.head_dim, p.batch, dense);
  std::vector<int64_t> position(count_of(p.batch, p.rows));
  for (int64_t& x : position)
    x = in.number(std::clamp<int64_t>(p.slots, 1, 300) + (in.byte() == 9 ? 1 : 0)) - 1;
  p.row_position = position.data(), p.row_position_bytes = position.size() * 8;
  const auto scale = in.byte();
  std::memcpy(&p.scale, in.fill<uint8_t>(4).data(), 4);
  if (scale != 1) p.scale = 0.1F * static_cast<float>(scale % 8);
  p.threshold = static_cast<float>(in.byte()) / 250.0F;
  std::vector<float> score(count_of(p.batch, p.kv_heads, p.slots), 0.0F);
  std::vector<int64_t> pairs(count_of(p.batch)), below(count_of(p.batch));
  p.score = score.data(), p.score_bytes = score.size() * 4;
  p.pairs = pairs.data(), p.below = below.data(), p.counts_bytes = pairs.size() * 8;
  p.accumulate = in.byte() % 2, p.threads = static_cast<int32_t>(in.number(3));
  char message[120] = "";
  if (vlkv_score_cpu(&p, message, sizeof(message)) != VLKV_OK) {
    check(std::strncmp(message, "[score] ", 8) == 0 || std::strcmp(message, "out of memory") == 0);
    return;
  }
  for (const float x : score) check(x >= 0.0F && x <= static_cast<float>(p.rows * p.query_heads) * 1.001F);
  for (size_t b = 0; b < pairs.size(); ++b) check(below[b] >= 0 && below[b] <= pairs[b]);
}

void fuzz_evict(Bytes& in) {
  Memory memory;
  vlkv_evict_params p{};
  p.batch = in.number(3), p.kv_heads = in.number(3), p.slots = in.number(60);
  p.head_dim = in.number(9), p.capacity = in.number(60);
  const bool dense = in.byte() % 4 != 0;
  p.key = memory.tensor(in, p.kv_heads, p.slots, p.head_dim, p.batch, dense);
  p.value = memory.tensor(in, p.kv_heads, p.slots, p.head_dim, p.batch, dense);
  p.key_out = memory.tensor(in, p.kv_heads, p.capacity, p.head_dim, p.batch, dense);
  p.value_out = memory.tensor(in, p.kv_heads, p.capacity, p.head_dim, p.batch, dense);
  if (in.byte() % 8 != 0 && p.key_out.bytes >= p.key.bytes) p.key_out.dtype = p.key.dtype;
  if (dense && in.byte() % 8 != 0) {
    for (vlkv_tensor* t : {&p.key, &p.value, &p.key_out, &p.value_out}) t->dtype = VLKV_BFLOAT16;
  }
  const std::vector<float> score = in.fill<float>(count_of(p.batch, p.kv_heads, p.slots));
  std::vector<int64_t> lengths[4];
  for (auto& list : lengths) list.resize(count_of(p.batch));
  for (size_t b = 0; b < lengths[0].size(); ++b) {
    lengths[0][b] = in.number(std::clamp<int64_t>(p.slots, 1, 300));
    lengths[1][b] = in.number(std::clamp<int64_t>(p.capacity, 1, 300));
    lengths[2][b] = in.number(5), lengths[3][b] = in.number(5);
  }
  p.score = score.data(), p.score_bytes = score.size() * 4;
  p.length = lengths[0].data(), p.keep = lengths[1].data(), p.sinks = lengths[2].data(),
  p.recent = lengths[3].data();
  p.lengths_bytes = lengths[0].size() * 8;
  std::vector<int32_t> position(count_of(p.batch, p.kv_heads, p.capacity), -5);
  p.position_out = position.data(), p.position_bytes = position.size() * 4;
  p.per_head = in.byte() % 2, p.merge = in.byte() % 16 == 0 ? in.byte() : in.byte() % 2;
  p.zero_tail = 1, p.threads = static_cast<int32_t>(in.number(3));
  char message[120] = "";
  if (vlkv_evict_cpu(&p, message, sizeof(message)) != VLKV_OK) {
    check(std::strncmp(message, "[evict] ", 8) == 0 || std::strcmp(message, "out of memory") == 0);
    return;
  }
  for (size_t i = 0; i < position.size(); ++i) {
    const auto capacity = static_cast<size_t>(p.capacity);
    const size_t place = i % capacity, b = i / capacity / static_cast<size_t>(p.kv_heads);
    const auto kept = static_cast<size_t>(std::min(lengths[0][b], lengths[1][b]));
    if (place >= kept) {
      check(position[i] == -1);
    } else {
      check(position[i] >= 0 && position[i] < lengths[0][b]);
      check(place == 0 || position[i] > position[i - 1]);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in(data, size);
  if (in.byte() % 2 == 0) {
    fuzz_score(in);
  } else {
    fuzz_evict(in);
  }
  return 0;
}
