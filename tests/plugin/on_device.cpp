// enqueue() with memory of a device: what the CPU's kernels give, in float32; Attend's definition, in
// bfloat16.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "device_memory.h"
#include "harness.h"
#include "vlkv/evict.h"
#include "vlkv/score.h"

namespace {

std::vector<float> normal(int64_t count) {
  static std::mt19937_64 engine(std::random_device{}());
  std::vector<float> all(static_cast<size_t>(count));
  for (float& x : all) x = std::normal_distribution<float>()(engine);
  return all;
}

vlkv::ConstView dense(const std::vector<float>& from, int64_t heads, int64_t slots, int64_t dim) {
  return {from.data(), vlkv::DType::kFloat32, heads * slots * dim, slots * dim, dim};
}
vlkv::View dense(std::vector<float>& to, int64_t heads, int64_t slots, int64_t dim) {
  return {to.data(), vlkv::DType::kFloat32, heads * slots * dim, slots * dim, dim};
}

template <class T>
DeviceMemory copied(const std::vector<T>& from) {
  return device_memory(from.size() * sizeof(T), from.data());
}

template <class T>
bool close(const DeviceMemory& there, const std::vector<T>& here, double tolerance) {
  std::vector<T> got(here.size());
  if (!from_device(got.data(), there, got.size() * sizeof(T))) return false;
  for (size_t i = 0; i < got.size(); ++i) {
    const double wanted = static_cast<double>(here[i]);
    if (!(std::fabs(static_cast<double>(got[i]) - wanted) <= tolerance * std::fabs(wanted))) return false;
  }
  return true;
}

constexpr DataType kReal = DataType::kFLOAT, kLong = DataType::kINT64;

}  // namespace

void check_score_on_device(Harness& h, nvinfer1::IPluginCreatorV3One& creator) {
  const float scale = 0.125F, threshold = 0.01F;
  const Made made(create(creator, {{"scale", &scale, PluginFieldType::kFLOAT32, 1},
                                   {"threshold", &threshold, PluginFieldType::kFLOAT32, 1}}));
  for (const int64_t rows : {0, 9}) {
    constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kSlots = 300, kDim = 64;
    const auto query = normal(kBatch * kHeads * rows * kDim), key = normal(kBatch * kKvHeads * kSlots * kDim);
    std::vector<int64_t> position;
    for (int64_t i = 0; i < kBatch * rows; ++i) position.push_back(i % 4 == 3 ? -1 : 290 + i % 10);
    std::vector<float> score(kBatch * kKvHeads * kSlots), sparsity(kBatch);
    vlkv::ScoreParams p;
    p.batch = kBatch, p.query_heads = kHeads, p.kv_heads = kKvHeads;
    p.rows = rows, p.slots = kSlots, p.head_dim = kDim;
    p.query = dense(query, kHeads, rows, kDim), p.key = dense(key, kKvHeads, kSlots, kDim);
    p.row_position = position.data(), p.row_position_stride_b = rows, p.scale = scale,
    p.threshold = threshold;
    p.score = score.data(), p.score_stride_b = kKvHeads * kSlots, p.score_stride_h = kSlots;
    p.sparsity = sparsity.data();
    run_cpu(p);

    const std::vector<PluginTensorDesc> all{
        tensor(kReal, {kBatch, kHeads, rows, kDim}), tensor(kReal, {kBatch, kKvHeads, kSlots, kDim}),
        tensor(kLong, {kBatch, rows}), tensor(kReal, {kBatch, kKvHeads, kSlots}), tensor(kReal, {kBatch})};
    const auto sized = ranges(all);
    const auto workspace = device_memory(made.build().getWorkspaceSize(sized.data(), 3, sized.data() + 3, 2));
    const auto query_there = copied(query), key_there = copied(key), position_there = copied(position);
    const auto score_there = device_memory(score.size() * 4),
               sparsity_there = device_memory(sparsity.size() * 4);
    const void* in[] = {query_there.get(), key_there.get(), position_there.get()};
    void* out[] = {score_there.get(), sparsity_there.get()};
    const std::string at = "VlkvScore on a device, W = " + std::to_string(rows);
    h.accepts(at, [&] {
      return made.runtime().enqueue(all.data(), all.data() + 3, in, out, workspace.get(), nullptr) == 0;
    });
    // Logits under 8 whose 64 products are summed in another order: errors under 1e-4.
    h.check(close(score_there, score, 8e-4), at + ": score");
    h.check(close(sparsity_there, sparsity, 0.05), at + ": sparsity");
  }
}

void check_evict_on_device(Harness& h, nvinfer1::IPluginCreatorV3One& creator) {
  for (const int32_t flags : {0, 1, 2, 3}) {
    const int32_t per_head = flags & 1, merge = flags >> 1;
    const Made made(create(creator, {{"per_head", &per_head, PluginFieldType::kINT32, 1},
                                     {"merge", &merge, PluginFieldType::kINT32, 1}}));
    constexpr int64_t kBatch = 2, kHeads = 3, kSlots = 500, kDim = 32, kCapacity = 60;
    const auto key = normal(kBatch * kHeads * kSlots * kDim), value = normal(kBatch * kHeads * kSlots * kDim);
    const auto score = normal(kBatch * kHeads * kSlots);
    const std::vector<int64_t> length{480, 30}, keep{55, 60}, sinks{2, 0}, recent{6, 0};
    std::vector<float> key_out(kBatch * kHeads * kCapacity * kDim), value_out(key_out.size());
    std::vector<int32_t> position(kBatch * kHeads * kCapacity);
    vlkv::EvictParams p;
    p.batch = kBatch, p.kv_heads = kHeads, p.slots = kSlots, p.head_dim = kDim, p.capacity = kCapacity;
    p.key = dense(key, kHeads, kSlots, kDim), p.value = dense(value, kHeads, kSlots, kDim);
    p.key_out = dense(key_out, kHeads, kCapacity, kDim),
    p.value_out = dense(value_out, kHeads, kCapacity, kDim);
    p.score = score.data(), p.score_stride_b = kHeads * kSlots, p.score_stride_h = kSlots;
    p.length = length.data(), p.keep = keep.data(), p.sinks = sinks.data(), p.recent = recent.data();
    p.position_out = position.data();
    p.position_stride_b = kHeads * kCapacity, p.position_stride_h = kCapacity;
    p.per_head = per_head != 0, p.merge = static_cast<vlkv::Merge>(merge);
    run_cpu(p);

    const auto cache = tensor(kReal, {kBatch, kHeads, kSlots, kDim}), count = tensor(kLong, {kBatch});
    const auto compact = tensor(kReal, {kBatch, kHeads, kCapacity, kDim});
    const std::vector<PluginTensorDesc> all{cache,
                                            cache,
                                            tensor(kReal, {kBatch, kHeads, kSlots}),
                                            count,
                                            count,
                                            count,
                                            count,
                                            tensor(kLong, {}),
                                            compact,
                                            compact,
                                            tensor(DataType::kINT32, {kBatch, kHeads, kCapacity})};
    const auto sized = ranges(all);
    const auto workspace = device_memory(made.build().getWorkspaceSize(sized.data(), 8, sized.data() + 8, 3));
    const DeviceMemory there[] = {copied(key),  copied(value), copied(score), copied(length),
                                  copied(keep), copied(sinks), copied(recent)};
    const DeviceMemory made_there[] = {device_memory(key_out.size() * 4), device_memory(value_out.size() * 4),
                                       device_memory(position.size() * 4)};
    const void* in[8] = {};
    for (size_t i = 0; i < 7; ++i) in[i] = there[i].get();
    void* out[] = {made_there[0].get(), made_there[1].get(), made_there[2].get()};
    const std::string at =
        "VlkvEvict on a device, per_head " + std::to_string(per_head) + ", merge " + std::to_string(merge);
    h.accepts(at, [&] {
      return made.runtime().enqueue(all.data(), all.data() + 8, in, out, workspace.get(), nullptr) == 0;
    });
    h.check(close(made_there[0], key_out, 0) && close(made_there[1], value_out, 0), at + ": keys and values");
    h.check(close(made_there[2], position, 0), at + ": positions");
  }
}

void check_attend_on_device(Harness& h, nvinfer1::IPluginCreatorV3One& creator) {
  const float scale = 0.125F;
  const Made made(create(creator, {{"scale", &scale, PluginFieldType::kFLOAT32, 1}}));
  constexpr int64_t kBatch = 2, kHeads = 4, kKvHeads = 2, kSlots = 900, kDim = 64;
  const auto wide = [](uint16_t bits) {
    const uint32_t word = uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &word, sizeof x);
    return static_cast<double>(x);
  };
  const auto brain = [](int64_t count) {  // the upper halves of float32 numbers
    std::vector<uint16_t> all;
    for (const float x : normal(count)) {
      uint32_t word;
      std::memcpy(&word, &x, sizeof word);
      all.push_back(static_cast<uint16_t>(word >> 16));
    }
    return all;
  };
  for (const int64_t rows : {1, 12, 70}) {
    const auto query = brain(kBatch * kHeads * rows * kDim), key = brain(kBatch * kKvHeads * rows * kDim);
    const auto value = brain(kBatch * kKvHeads * rows * kDim);
    auto key_cache = brain(kBatch * kKvHeads * kSlots * kDim), value_cache = key_cache;
    std::reverse(value_cache.begin(), value_cache.end());
    const std::vector<int64_t> length{800, 30}, count{rows, rows / 2};
    const DeviceMemory there[] = {copied(query),       copied(key),    copied(value), copied(key_cache),
                                  copied(value_cache), copied(length), copied(count)};
    const auto result_there = device_memory(query.size() * 2);

    const DataType brain16 = DataType::kBF16;
    const auto rows_of = tensor(brain16, {kBatch, kKvHeads, rows, kDim});
    const auto cache = tensor(brain16, {kBatch, kKvHeads, kSlots, kDim}), counts = tensor(kLong, {kBatch});
    const auto queries = tensor(brain16, {kBatch, kHeads, rows, kDim});
    const std::vector<PluginTensorDesc> all{queries, rows_of, rows_of, cache, cache,
                                            counts,  counts,  queries, cache, cache};
    const auto sized = ranges(all);
    const auto workspace = device_memory(made.build().getWorkspaceSize(sized.data(), 7, sized.data() + 7, 3));
    const void* in[7] = {};
    for (size_t i = 0; i < 7; ++i) in[i] = there[i].get();
    void* out[] = {result_there.get(), there[3].get(), there[4].get()};
    const std::string at = "VlkvAttend on a device, S = " + std::to_string(rows);
    h.accepts(at, [&] {
      return made.runtime().enqueue(all.data(), all.data() + 7, in, out, workspace.get(), nullptr) == 0;
    });

    for (size_t head = 0; head < kBatch * kKvHeads; ++head) {
      const size_t b = head / kKvHeads;
      for (int64_t i = 0; i < count[b] * kDim; ++i) {
        const auto to = static_cast<size_t>((static_cast<int64_t>(head) * kSlots + length[b]) * kDim + i);
        const size_t from = head * static_cast<size_t>(rows * kDim) + static_cast<size_t>(i);
        key_cache[to] = key[from], value_cache[to] = value[from];
      }
    }
    h.check(close(there[3], key_cache, 0) && close(there[4], value_cache, 0), at + ": caches");
    std::vector<uint16_t> got(query.size());
    bool right = from_device(got.data(), result_there, got.size() * 2);
    for (size_t row = 0; row < got.size() / kDim; ++row) {
      const size_t head = row / static_cast<size_t>(rows), b = head / kHeads;
      const auto token = static_cast<int64_t>(row % static_cast<size_t>(rows));
      const size_t cached = (b * kKvHeads + head % kHeads / (kHeads / kKvHeads)) * kSlots;
      const auto slots = static_cast<size_t>(token < count[b] ? length[b] + token + 1 : 0);
      double mean[kDim] = {}, sum = 0;
      for (size_t slot = 0; slot < slots; ++slot) {
        double logit = 0;
        for (size_t d = 0; d < kDim; ++d) {
          logit += wide(query[row * kDim + d]) * wide(key_cache[(cached + slot) * kDim + d]);
        }
        const double weight = std::exp(scale * logit);
        sum += weight;
        for (size_t d = 0; d < kDim; ++d) mean[d] += weight * wide(value_cache[(cached + slot) * kDim + d]);
      }
      // Weights and result are rounded to 8 bits; means of numbers under 4.
      for (size_t d = 0; d < kDim; ++d) {
        right = right && std::fabs(wide(got[row * kDim + d]) - (slots > 0 ? mean[d] / sum : 0)) <= 0x1p-6;
      }
    }
    h.check(right, at + ": result");
  }
}
