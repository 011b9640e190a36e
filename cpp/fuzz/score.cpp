// Fuzzes Score's C entry point with arbitrary shapes, strides, lengths and contents: each call either
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
  vlkv_score_params p{};
  p.batch = in.number(3), p.kv_heads = in.number(1, 3);
  p.query_heads = product(p.kv_heads, in.number(1, 3));
  p.rows = in.number(20), p.slots = in.number(220), p.head_dim = in.number(1, 20);
  const bool dense = in.byte() % 4 != 0;
  p.query = memory.tensor(in, p.query_heads, p.rows, p.head_dim, p.batch, dense);
  p.key = memory.tensor(in, p.kv_heads, p.slots, p.head_dim, p.batch, dense);
  std::vector<int64_t> position(count_of(p.batch, p.rows));
  for (int64_t& x : position)
    x = sum(in.number(std::clamp<int64_t>(p.slots, 1, 300) + (in.byte() == 9 ? 1 : 0)), -1);
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

}  // namespace
}  // namespace vlkv::fuzz

extern "C" int vlkv_fuzz_score(const uint8_t* data, size_t size) {
  vlkv::fuzz::Bytes in(data, size);
  vlkv::fuzz::run(in);
  return 0;
}
