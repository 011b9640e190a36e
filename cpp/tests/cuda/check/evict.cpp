// Evict on the device against the CPU's kernel, bit for bit.
#include <algorithm>
#include <cmath>

#include "check.h"

namespace vlkv::check {

void check_evict(Random& random) {
  EvictParams p;
  const DType type = random.type();
  p.batch = random.integer(1, 2), p.kv_heads = random.integer(1, 3);
  // A long cache now and then: several blocks select.
  const bool is_long = random.integer(0, 3) == 0;
  p.slots = is_long ? random.integer(65536, 80000) : random.integer(1, 5000);
  p.head_dim = random.integer(1, is_long ? 4 : 40);
  p.per_head = random.integer(0, 1) == 1, p.merge = static_cast<Merge>(random.integer(0, 1));
  const int64_t heads = p.batch * p.kv_heads;
  const auto key = random.cache(type, heads * p.slots * p.head_dim);
  const auto value = random.cache(type, heads * p.slots * p.head_dim);
  std::vector<float> score;
  for (int64_t i = 0; i < heads * p.slots; ++i) score.push_back(std::round(random.normal() * 9));
  std::vector<int64_t> length, keep, sinks, recent;
  for (int64_t b = 0; b < p.batch; ++b) {
    length.push_back(random.integer(0, p.slots)), keep.push_back(random.integer(0, p.slots));
    sinks.push_back(random.integer(0, keep.back()));
    recent.push_back(random.integer(0, keep.back() - sinks.back()));
    p.capacity = std::max(p.capacity, std::min(length.back(), keep.back()));
  }
  p.capacity += random.integer(0, 3);
  const int64_t size = size_of(type);
  p.key = {key.data(), type, p.kv_heads * p.slots * p.head_dim, p.slots * p.head_dim, p.head_dim};
  p.value = p.key, p.value.data = value.data();
  auto key_out = filled<unsigned char>(heads * p.capacity * p.head_dim * size, 0xff), value_out = key_out;
  p.key_out = {key_out.data(), type, p.kv_heads * p.capacity * p.head_dim, p.capacity * p.head_dim,
               p.head_dim};
  p.value_out = p.key_out, p.value_out.data = value_out.data();
  p.score = score.data(), p.score_stride_b = p.kv_heads * p.slots, p.score_stride_h = p.slots;
  p.length = length.data(), p.keep = keep.data(), p.sinks = sinks.data(), p.recent = recent.data();
  auto position = filled<int32_t>(heads * p.capacity, -9);
  p.position_out = position.data();
  p.position_stride_b = p.kv_heads * p.capacity, p.position_stride_h = p.capacity;
  run_cpu(p);

  const Device key_there(key), value_there(value), score_there(score), position_there(position.size() * 4);
  const Device length_there(length), keep_there(keep), sinks_there(sinks), recent_there(recent);
  const Device key_out_there(key_out.size()), value_out_there(value_out.size());
  p.key.data = key_there.as<void>(), p.value.data = value_there.as<void>();
  p.score = score_there.as<float>();
  p.length = length_there.as<int64_t>(), p.keep = keep_there.as<int64_t>();
  p.sinks = sinks_there.as<int64_t>(), p.recent = recent_there.as<int64_t>();
  p.key_out.data = key_out_there.as<void>(), p.value_out.data = value_out_there.as<void>();
  p.position_out = position_there.as<int32_t>();
  run(p);
  require(position_there.read<int32_t>() == position, "positions differ");
  require(key_out_there.read<unsigned char>() == key_out, "keys differ");
  require(value_out_there.read<unsigned char>() == value_out, "values differ");
}

}  // namespace vlkv::check
