// vlkv_cuda_check [CASES]: random small cases of Score and Evict on the device against the CPU's kernels,
// whose oracle is elsewhere, and of Attend, MoveSlots, Pick and Draw against their definitions. Exits 1 where
// they differ, 77 without a device. Small, for compute-sanitizer.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "next_token.h"
#include "vlkv/cuda.h"

namespace {

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

class Device {
 public:
  explicit Device(size_t bytes) : bytes_(bytes) { require(cudaMalloc(&data_, bytes + 1)); }
  template <class T>
  explicit Device(const std::vector<T>& from) : Device(from.size() * sizeof(T)) {
    require(cudaMemcpy(data_, from.data(), bytes_, cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> all(bytes_ / sizeof(T));
    require(cudaMemcpy(all.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return all;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

class Random {
 public:
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  // In [0, 1).
  double uniform() { return static_cast<double>(integer(0, (int64_t{1} << 53) - 1)) * 0x1p-53; }
  float normal() { return std::normal_distribution<float>()(engine_); }
  // Elements of a cache: float32, or 16 bits that both types read as numbers of moderate size.
  std::vector<unsigned char> cache(vlkv::DType type, int64_t count) {
    std::vector<unsigned char> bytes(static_cast<size_t>(count * vlkv::size_of(type)));
    for (int64_t i = 0; i < count; ++i) {
      const float value = normal();
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      const auto high = static_cast<uint16_t>(bits >> 16);
      const auto half =
          static_cast<uint16_t>((integer(0, 1) << 15) | (integer(12, 15) << 10) | integer(0, 1023));
      const uint16_t narrow = type == vlkv::DType::kBFloat16 ? high : half;
      if (type == vlkv::DType::kFloat32)
        std::memcpy(bytes.data() + i * 4, &bits, 4);
      else
        std::memcpy(bytes.data() + i * 2, &narrow, 2);
    }
    return bytes;
  }
  vlkv::DType type() { return static_cast<vlkv::DType>(integer(0, 2)); }

 private:
  std::mt19937_64 engine_{std::random_device{}()};
};

template <class Params>
void run(const Params& p) {
  const Device workspace(cuda_workspace_size(p));
  run_cuda(p, workspace.as<void>(), nullptr);
  require(cudaDeviceSynchronize());
}

template <class T>
std::vector<T> filled(int64_t count, T value) {
  return std::vector<T>(static_cast<size_t>(count), value);
}

void check_score(Random& random) {
  vlkv::ScoreParams p;
  const vlkv::DType type = random.type();
  p.batch = random.integer(1, 2), p.kv_heads = random.integer(1, 2);
  p.query_heads = p.kv_heads * random.integer(1, 8);
  p.rows = random.integer(1, 70), p.slots = random.integer(1, 700), p.head_dim = random.integer(1, 18) * 8;
  const auto query = random.cache(type, p.batch * p.query_heads * p.rows * p.head_dim);
  const auto key = random.cache(type, p.batch * p.kv_heads * p.slots * p.head_dim);
  std::vector<int64_t> position;
  for (int64_t i = 0; i < p.batch * p.rows; ++i) position.push_back(random.integer(-1, p.slots - 1));
  p.query = {query.data(), type, p.query_heads * p.rows * p.head_dim, p.rows * p.head_dim, p.head_dim};
  p.key = {key.data(), type, p.kv_heads * p.slots * p.head_dim, p.slots * p.head_dim, p.head_dim};
  p.row_position = position.data(), p.row_position_stride_b = p.rows;
  p.score_stride_b = p.kv_heads * p.slots, p.score_stride_h = p.slots;
  auto score = filled(p.batch * p.kv_heads * p.slots, NAN);
  auto pairs = filled<int64_t>(p.batch, -7), below = pairs;
  p.score = score.data(), p.pairs = pairs.data(), p.below = below.data();
  run_cpu(p);

  const Device query_there(query), key_there(key), position_there(position);
  const Device score_there(score.size() * 4), pairs_there(pairs.size() * 8), below_there(below.size() * 8);
  p.query.data = query_there.as<void>(), p.key.data = key_there.as<void>();
  p.row_position = position_there.as<void>();
  p.score = score_there.as<float>();
  p.pairs = pairs_there.as<int64_t>(), p.below = below_there.as<int64_t>();
  run(p);
  const auto got = score_there.read<float>();
  // Logits of numbers under 6 are off by less than 1e-3 for both: D 144, 36 a product, 147 eps of the
  // magnitudes.
  for (size_t i = 0; i < got.size(); ++i) {
    require(
        std::fabs(got[i] - score[i]) <= 8e-3F * score[i] + 1e-30F,
        "score " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " + std::to_string(score[i]));
  }
  require(pairs_there.read<int64_t>() == pairs, "pairs differ");
  const auto counted = below_there.read<int64_t>();
  for (size_t b = 0; b < counted.size(); ++b) {
    require(std::llabs(counted[b] - below[b]) <= pairs[b] / 500 + 3, "below differs");
  }
}

void check_evict(Random& random) {
  vlkv::EvictParams p;
  const vlkv::DType type = random.type();
  p.batch = random.integer(1, 2), p.kv_heads = random.integer(1, 3);
  p.slots = random.integer(1, 5000), p.head_dim = random.integer(1, 40);
  p.per_head = random.integer(0, 1) == 1, p.merge = static_cast<vlkv::Merge>(random.integer(0, 1));
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
  const int64_t size = vlkv::size_of(type);
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

// Bits of a number of moderate size, by cache(): no subnormals.
double number(vlkv::DType type, uint16_t bits) {
  if (type == vlkv::DType::kFloat16) {
    const double size = std::ldexp(1024 + (bits & 1023), ((bits >> 10) & 31) - 25);
    return (bits & 0x8000) != 0 ? -size : size;
  }
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

void check_attend(Random& random) {
  vlkv::AttendRowsParams p;
  const vlkv::DType type = static_cast<vlkv::DType>(random.integer(1, 2));
  p.batch = random.integer(1, 2), p.kv_heads = random.integer(1, 2);
  const int64_t group = random.integer(1, 7);
  p.query_heads = p.kv_heads * group;
  p.rows = random.integer(0, 1) == 0 ? 1 : random.integer(1, 70);
  p.slots = random.integer(1, 900), p.head_dim = random.integer(1, 32) * 8;
  const int64_t heads = p.batch * p.kv_heads, dim = p.head_dim;
  const auto query = random.cache(type, heads * group * p.rows * dim);
  const auto key = random.cache(type, heads * p.rows * dim), value = random.cache(type, heads * p.rows * dim);
  auto keys = random.cache(type, heads * p.slots * dim), values = random.cache(type, heads * p.slots * dim);
  std::vector<int64_t> length, count;
  for (int64_t b = 0; b < p.batch; ++b) {
    length.push_back(random.integer(0, p.slots));
    count.push_back(random.integer(0, std::min(p.rows, p.slots - length.back())));
  }
  const Device query_there(query), key_there(key), value_there(value), keys_there(keys), values_there(values);
  const Device length_there(length), count_there(count), result_there(query.size());
  const auto view = [&](const Device& of, int64_t count_of_heads, int64_t slots) {
    return vlkv::View{of.as<void>(), type, count_of_heads * slots * dim, slots * dim, dim};
  };
  const auto read = [&](const Device& of, int64_t slots) {
    const vlkv::View all = view(of, p.kv_heads, slots);
    return vlkv::ConstView{all.data, type, all.stride_b, all.stride_h, all.stride_s};
  };
  const vlkv::View rows = view(query_there, p.query_heads, p.rows);
  p.query = {rows.data, type, rows.stride_b, rows.stride_h, rows.stride_s};
  p.key = read(key_there, p.rows), p.value = read(value_there, p.rows);
  p.key_cache = view(keys_there, p.kv_heads, p.slots),
  p.value_cache = view(values_there, p.kv_heads, p.slots);
  p.length = length_there.as<int64_t>(), p.count = count_there.as<int64_t>();
  p.result = view(result_there, p.query_heads, p.rows);
  run(p);

  for (int64_t head = 0; head < heads; ++head) {
    const auto b = static_cast<size_t>(head / p.kv_heads);
    const auto to = static_cast<size_t>((head * p.slots + length[b]) * dim * 2);
    const auto from = static_cast<size_t>(head * p.rows * dim * 2),
               bytes = static_cast<size_t>(count[b] * dim * 2);
    std::copy_n(key.begin() + static_cast<long>(from), bytes, keys.begin() + static_cast<long>(to));
    std::copy_n(value.begin() + static_cast<long>(from), bytes, values.begin() + static_cast<long>(to));
  }
  require(keys_there.read<unsigned char>() == keys, "key caches differ");
  require(values_there.read<unsigned char>() == values, "value caches differ");
  const auto got = result_there.read<uint16_t>();
  const auto at = [&](const std::vector<unsigned char>& of, int64_t element) {
    uint16_t bits;
    std::memcpy(&bits, of.data() + element * 2, sizeof bits);
    return number(type, bits);
  };
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  for (int64_t row = 0; row < heads * group * p.rows; ++row) {
    const int64_t head = row / p.rows / group, token = row % p.rows;
    const auto b = static_cast<size_t>(head / p.kv_heads);
    const int64_t slots = token < count[b] ? length[b] + token + 1 : 0;
    std::vector<double> weight;
    double most = -1e300, sum = 0, largest = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      double logit = 0, terms = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double term = scale * at(query, row * dim + d) * at(keys, (head * p.slots + slot) * dim + d);
        logit += term, terms += std::fabs(term);
      }
      weight.push_back(logit), most = std::max(most, logit), largest = std::max(largest, terms);
    }
    for (double& x : weight) sum += x = std::exp(x - most);
    const double narrow = type == vlkv::DType::kFloat16 ? 0x1p-11 : 0x1p-8;
    const double error = 2 * std::expm1(2 * static_cast<double>(dim + 3) * 0x1p-23 * largest) + 0x1p-20 +
                         2 * static_cast<double>(slots) * 0x1p-23 + narrow;
    for (int64_t d = 0; d < dim; ++d) {
      double mean = 0, magnitude = 0, all = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        const double x = at(values, (head * p.slots + slot) * dim + d);
        const double part = weight[static_cast<size_t>(slot)] / sum * x;
        mean += part, magnitude += std::fabs(part), all += std::fabs(x);
      }
      const uint16_t bits = got[static_cast<size_t>(row * dim + d)];
      const double is = (bits & 0x7fff) == 0 ? 0 : number(type, bits);
      const double allowed =
          error * magnitude + (sum > 0 ? 0x1p-25 * all / sum : 0) + narrow * std::fabs(mean) + 0x1p-14;
      require(std::fabs(is - mean) <= allowed, "row " + std::to_string(row) + " element " +
                                                   std::to_string(d) + " is " + std::to_string(is) +
                                                   ", not " + std::to_string(mean));
    }
  }
}

void check_move_slots(Random& random) {
  vlkv::MoveSlotsParams p;
  p.layers = random.integer(1, 4), p.batch = random.integer(1, 3), p.kv_heads = random.integer(1, 5);
  p.slot_bytes = 2 * random.integer(1, 200);
  const int64_t heads = p.batch * p.kv_heads;
  std::vector<int64_t> capacity, slots, last;
  for (int64_t layer = 0; layer < p.layers; ++layer) {
    capacity.push_back(random.integer(1, 40));
    for (int64_t b = 0; b < p.batch; ++b) last.push_back(random.integer(-1, capacity.back()));
    for (int64_t head = 0; head < heads; ++head) slots.push_back(random.integer(-1, capacity.back()));
  }
  std::vector<std::vector<unsigned char>> wanted;
  std::vector<std::unique_ptr<Device>> there;
  std::vector<void*> arrays;
  for (int64_t array = 0; array < 2 * p.layers; ++array) {
    const auto layer = array % p.layers;
    const int64_t most = capacity[static_cast<size_t>(layer)];
    std::vector<unsigned char> bytes(static_cast<size_t>(heads * most * p.slot_bytes));
    for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random.integer(0, 255));
    there.push_back(std::make_unique<Device>(bytes));
    arrays.push_back(there.back()->as<void>());
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t from = last[static_cast<size_t>(layer * p.batch + head / p.kv_heads)];
      const int64_t to = slots[static_cast<size_t>(layer * heads + head)];
      if (from < 0 || from >= most || to < 0 || to >= most) continue;
      unsigned char* const first = bytes.data() + head * most * p.slot_bytes;
      std::memmove(first + to * p.slot_bytes, first + from * p.slot_bytes, static_cast<size_t>(p.slot_bytes));
    }
    wanted.push_back(std::move(bytes));
  }
  const Device arrays_there(arrays), capacity_there(capacity), slots_there(slots), last_there(last);
  p.arrays = arrays_there.as<void*>(), p.capacity = capacity_there.as<int64_t>();
  p.slots = slots_there.as<int64_t>(), p.last = last_there.as<int64_t>();
  run_cuda(p, nullptr);
  require(cudaDeviceSynchronize());
  for (size_t array = 0; array < wanted.size(); ++array) {
    require(there[array]->read<unsigned char>() == wanted[array], "moved slots differ");
  }
}

// Logits of a batch, which are whole numbers or not, and the tokens that a kernel chose.
struct Choice {
  int64_t batch, vocab;
  std::vector<float> logits;
  Device logits_there, token_there, best_there;

  Choice(Random& random, int64_t b, int64_t v)
      : batch(b),
        vocab(v),
        logits(drawn_logits(random, b * v)),
        logits_there(logits),
        token_there(static_cast<size_t>(b) * sizeof(int32_t)),
        best_there(static_cast<size_t>(b) * sizeof(float)) {}

  static std::vector<float> drawn_logits(Random& random, int64_t count) {
    const bool whole = random.integer(0, 1) == 1;
    std::vector<float> all;
    for (int64_t i = 0; i < count; ++i) {
      const float logit = 4 * random.normal();
      all.push_back(whole ? std::round(logit) : logit);
    }
    if (random.integer(0, 3) == 0) {
      all[static_cast<size_t>(random.integer(0, count - 1))] = random.integer(0, 1) == 0 ? NAN : INFINITY;
    }
    return all;
  }

  template <class Params>
  void run(Params p) const {
    p.batch = batch, p.vocab = vocab;
    p.logits = logits_there.as<float>(), p.token = token_there.as<int32_t>(), p.best = best_there.as<float>();
    run_cuda(p, nullptr);
    require(cudaDeviceSynchronize());
  }

  // wanted(logits of a prompt, its number): the token.
  template <class Wanted>
  void check(const char* what, Wanted wanted) const {
    const auto token = token_there.read<int32_t>();
    const auto best = best_there.read<float>();
    for (int64_t b = 0; b < batch; ++b) {
      const std::vector<float> row(logits.begin() + b * vocab, logits.begin() + (b + 1) * vocab);
      const int32_t right = wanted(row, static_cast<size_t>(b)), is = token[static_cast<size_t>(b)];
      require(is == right, std::string(what) + " " + std::to_string(is) + ", not " + std::to_string(right));
      const float largest = row[static_cast<size_t>(vlkv::test::picked(row))];
      require(std::memcmp(&best[static_cast<size_t>(b)], &largest, sizeof largest) == 0,
              std::string(what) + ": the largest logit differs");
    }
  }
};

void check_pick(Random& random) {
  const Choice choice(random, random.integer(1, 4), random.integer(1, 9000));
  choice.run(vlkv::PickParams{});
  choice.check("picked", [](const auto& row, size_t) { return vlkv::test::picked(row); });
}

void check_draw(Random& random) {
  const Choice choice(random, random.integer(1, 4), random.integer(1, 9000));
  std::vector<vlkv::DrawSettings> settings;
  for (int64_t b = 0; b < choice.batch; ++b) {
    const double temperature = random.integer(0, 4) == 0 ? 0 : 0.1 + 2 * random.uniform();
    const double top_k = static_cast<double>(random.integer(0, 1) == 0 ? 0 : random.integer(1, choice.vocab));
    settings.push_back(
        {temperature, top_k, random.integer(0, 1) == 0 ? 1 : random.uniform(), random.uniform()});
  }
  const Device settings_there(settings);
  vlkv::DrawParams p;
  p.settings = settings_there.as<vlkv::DrawSettings>();
  choice.run(p);
  choice.check("drawn", [&](const auto& row, size_t b) { return vlkv::test::drawn(row, settings[b]); });
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
  try {
    Random random;
    for (int i = 0; i < cases; ++i) {
      check_score(random);
      check_evict(random);
      check_attend(random);
      check_move_slots(random);
      check_pick(random);
      check_draw(random);
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::printf("%d cases right\n", cases);
  return 0;
}
