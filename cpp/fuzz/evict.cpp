// Fuzzes Evict's C entry point with arbitrary shapes, strides, lengths and contents: each call either
// refuses or stays inside its buffers, which the sanitizers check, and its results follow the header.
#include <algorithm>
#include <cstring>
#include <vector>

#include "fuzz/c_tensors.h"
#include "fuzz/targets.h"

namespace vlkv::fuzz {
namespace {

void run(Bytes& in) {
  Memory memory;
  vlkv_evict_params p{};
  p.batch = in.number(3), p.kv_heads = in.number(1, 3), p.slots = in.number(1, 60);
  p.head_dim = in.number(1, 9), p.capacity = in.number(1, 60);
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
    lengths[1][b] = in.byte() % 2 == 0 ? std::min(p.capacity, lengths[0][b])
                                       : in.number(std::clamp<int64_t>(p.capacity, 1, 300));
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
}  // namespace vlkv::fuzz

extern "C" int vlkv_fuzz_evict(const uint8_t* data, size_t size) {
  vlkv::fuzz::Bytes in(data, size);
  vlkv::fuzz::run(in);
  return 0;
}
