// Attend on the device against its definition in float64.
#include <algorithm>
#include <cmath>

#include "check.h"

namespace vlkv::check {
namespace {

// Bits of a number of moderate size, by cache(): no subnormals.
double number(DType type, uint16_t bits) {
  if (type == DType::kFloat16) {
    const double size = std::ldexp(1024 + (bits & 1023), ((bits >> 10) & 31) - 25);
    return (bits & 0x8000) != 0 ? -size : size;
  }
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

}  // namespace

void check_attend(Random& random) {
  AttendRowsParams p;
  const DType type = static_cast<DType>(random.integer(1, 2));
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
    return View{of.as<void>(), type, count_of_heads * slots * dim, slots * dim, dim};
  };
  const auto read = [&](const Device& of, int64_t slots) {
    const View all = view(of, p.kv_heads, slots);
    return ConstView{all.data, type, all.stride_b, all.stride_h, all.stride_s};
  };
  const View rows = view(query_there, p.query_heads, p.rows);
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
    const double narrow = type == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
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

}  // namespace vlkv::check
