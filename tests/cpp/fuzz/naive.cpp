// Attend and Linear by definition, each with faults to choose from, and a program that runs a fuzz target
// over them: naive attend|linear FAULT SEED COUNT. A fault that the target sees ends it; fault 0 is none.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "core/check.h"
#include "cpu/rotate.h"
#include "fuzz/bytes.h"
#include "fuzz/targets.h"
#include "vlkv/attend.h"
#include "vlkv/linear.h"

namespace vlkv {
namespace {

int fault = 0;

void store(const AttendParams& p, const float* from, uint8_t* to) {
  std::vector<float> row(from, from + p.head_dim);
  if (p.cache == DType::kFloat32) std::memcpy(to, from, row.size() * 4);
  for (size_t d = 0; p.cache == DType::kFloat16 && d < row.size(); ++d) {
    const auto half = static_cast<_Float16>(row[d]);
    std::memcpy(to + 2 * d, &half, 2);
  }
  for (size_t d = 0; p.cache == DType::kBFloat16 && d < row.size(); ++d) {
    uint32_t bits = 0;
    std::memcpy(&bits, &row[d], 4);
    if (fault != 9) bits += 0x7fffU + (bits >> 16 & 1U);  // 9: cut off, not rounded
    if (std::isnan(row[d])) bits = 0x7fc00000U;
    const auto half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(to + 2 * d, &half, 2);
  }
  if (p.cache != DType::kInt8) return;
  if (fault != 10) cpu::rotate(row.data(), 1, p.head_dim);  // 10: not rotated
  float most = 0;
  for (const float x : row) most = std::isfinite(x) ? std::max(most, std::abs(x)) : x * 0 + std::nanf("");
  const float scale = most / 127;
  for (size_t d = 0; d < row.size(); ++d) {
    const float code = scale > 0 ? std::nearbyint(row[d] / scale) : 0.0F;
    to[d] = static_cast<uint8_t>(static_cast<int8_t>(std::clamp(code, -127.0F, 127.0F)));
  }
  std::memcpy(to + p.head_dim, &scale, 4);
}

std::vector<double> load(const AttendParams& p, const uint8_t* from) {
  std::vector<double> row(static_cast<size_t>(p.head_dim));
  for (int64_t d = 0; d < p.head_dim; ++d) {
    row[static_cast<size_t>(d)] =
        p.cache == DType::kInt8
            ? static_cast<int8_t>(from[d]) * fuzz::element(from + p.head_dim, DType::kFloat32, 0)
            : fuzz::element(from, p.cache, d);
  }
  return row;
}

// An orthonormal rotation in float32 of numbers that may be of any size.
void turn(std::vector<double>& row) {
  std::vector<float> copy(row.begin(), row.end());
  cpu::rotate(copy.data(), 1, static_cast<int64_t>(copy.size()));
  row.assign(copy.begin(), copy.end());
}

// A token's own row, as it is given.
std::vector<double> own(const AttendParams& p, const float* given) {
  std::vector<double> row(given, given + p.head_dim);
  if (p.cache == DType::kInt8) turn(row);
  return row;
}

}  // namespace

void run_cpu(const AttendParams& p, const Loop&) {
  const int64_t bytes = row_bytes(p.cache, p.head_dim);
  const auto row = [&](void* cache, int64_t b, int64_t head, int64_t slot) {
    return static_cast<uint8_t*>(cache) + ((b * p.kv_heads + head) * p.slots + slot) * bytes;
  };
  const auto first = [&](int64_t b) { return int64_t{p.first ? p.first[b] : p.last[b]}; };
  validate(p);
  if (p.batch == 0 || p.rows == 0) return;
  if (fault == 1) *row(p.key_cache, 0, 0, 0) ^= 1;  // before the slots are checked
  const Check check("attend");
  for (int64_t b = 0; b < p.batch; ++b) {
    check.require(p.last[b] >= 0 && p.last[b] < p.slots && first(b) >= 0, "slots");
    check.require(first(b) <= p.last[b] && p.last[b] - first(b) < p.rows, "slots");
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t token = 0; token <= p.last[b] - first(b); ++token) {
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        const int64_t from = ((b * p.rows + token) * p.kv_heads + head) * p.head_dim;
        store(p, p.key + from, row(p.key_cache, b, head, first(b) + token));
        store(p, p.value + from, row(p.value_cache, b, head, first(b) + token));
      }
    }
    if (fault == 2 && p.last[b] + 1 < p.slots) *row(p.value_cache, b, 0, p.last[b] + 1) ^= 1;
    if (fault == 8) {  // it reads the row after the last
      const volatile uint8_t* after = row(p.key_cache, b, p.kv_heads - 1, p.last[b] + 1);
      if (*after == 77) std::printf(" ");
    }
  }
  const int64_t group = p.query_heads / p.kv_heads;
  const double scale =
      p.scale == 0.0F ? 1 / std::sqrt(static_cast<double>(p.head_dim)) : static_cast<double>(p.scale);
  for (int64_t i = 0; i < p.batch * p.rows * p.query_heads; ++i) {
    const int64_t h = i % p.query_heads, token = i / p.query_heads % p.rows, b = i / p.query_heads / p.rows;
    float* to = p.result + i * p.head_dim;
    const int64_t head = fault == 4 ? h % p.kv_heads : h / group;
    int64_t slots = first(b) + token + 1;
    if (slots > p.last[b] + 1) {
      if (fault != 3) std::fill_n(to, p.head_dim, 0.0F);
      continue;
    }
    if (fault == 5 && slots > 96) --slots;
    const float* query = p.query + i * p.head_dim;
    std::vector<double> rotated(query, query + p.head_dim), sum(static_cast<size_t>(p.head_dim));
    if (p.cache == DType::kInt8) turn(rotated);
    const int64_t given = ((b * p.rows + token) * p.kv_heads + head) * p.head_dim;
    const auto seen = [&](const float* fresh, void* cache, int64_t slot) {
      const bool kept = slot != first(b) + token || fault == 23;  // 23: its own row as it is stored
      return kept ? load(p, row(cache, b, head, slot)) : own(p, fresh + given);
    };
    std::vector<double> logits;
    for (int64_t slot = 0; slot < slots; ++slot) {
      const auto key = seen(p.key, p.key_cache, slot);
      double logit = 0;
      for (size_t d = 0; d < key.size(); ++d) logit += rotated[d] * key[d];
      logits.push_back(logit * scale);
    }
    const double most = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      const auto mean = seen(p.value, p.value_cache, slot);
      const double weight = std::exp(logits[static_cast<size_t>(slot)] - most);
      total += weight;
      for (size_t d = 0; d < mean.size(); ++d) sum[d] += weight * mean[d];
    }
    for (double& x : sum) x /= total;
    if (p.cache == DType::kInt8) turn(sum);
    for (size_t d = 0; d < sum.size(); ++d) to[d] = static_cast<float>(sum[d]);
    if (fault == 6 && p.threads > 1) to[0] = std::nextafter(to[0], 9.0F);
    if (fault == 7) to[0] *= 1.001F;
  }
}

namespace {

double weight(const LinearParams& p, const LinearProduct& product, int64_t column, int64_t k) {
  if (p.format <= WeightFormat::kBFloat16) {
    return fuzz::element(product.weight, static_cast<DType>(p.format), column * p.depth + k);
  }
  const int64_t blocks = (p.depth + p.block - 1) / p.block, block = column * blocks + k / p.block;
  const int64_t at = block * p.block + k % p.block;
  const auto* bytes = static_cast<const uint8_t*>(product.weight);
  const bool wide = p.format == WeightFormat::kInt8;
  const int code = wide                             ? bytes[at]
                   : (at % 2 == 0) == (fault != 21) ? bytes[at / 2] & 15
                                                    : bytes[at / 2] >> 4;
  const double scale = fuzz::element(product.scales, p.scale_type, block);
  if (product.minimums && fault != 22)
    return code * scale + fuzz::element(product.minimums, DType::kFloat16, block);
  const int zero = wide ? 128 : product.zeros ? product.zeros[block] : 8 - (fault == 14 ? 1 : 0);
  return (code - zero) * scale;
}

std::vector<double> prepared(const LinearParams& p, int64_t r) {
  std::vector<double> row(p.input + r * p.depth, p.input + (r + 1) * p.depth);
  double squares = 0;
  for (const double x : row) squares += x * x;
  const double mean = squares / static_cast<double>(p.depth + (fault == 19 ? 1 : 0));
  for (size_t k = 0; k < row.size(); ++k) {
    if (p.norm) row[k] *= static_cast<double>(p.norm[k]) / std::sqrt(mean + static_cast<double>(p.epsilon));
    if (p.gated)
      row[k] *= static_cast<double>(p.gated[static_cast<size_t>(r * p.depth) + k]) / (1 + std::exp(-row[k]));
    if (p.gated && fault == 20) row[k] = -row[k];
  }
  return row;
}

}  // namespace

bool bfloat16_products() { return false; }
bool fixed16_products() { return false; }

void run_cpu(const LinearParams& p, const Loop&) {
  if (fault == 11 && p.count > 0 && p.products && p.products[0].result &&
      p.rows * p.products[0].columns > 0) {
    p.products[0].result[0] = 0;  // before the call is checked
  }
  validate(p);
  for (int64_t i = 0; i < p.count; ++i) {
    const LinearProduct& product = p.products[i];
    for (int64_t r = 0; r < p.rows; ++r) {
      const auto row = prepared(p, r);
      for (int64_t column = 0; column < product.columns; ++column) {
        double sum = 0;
        for (int64_t k = 0; k < p.depth - (fault == 15 && p.depth > 64 && p.depth % 16 == 1); ++k) {
          sum += row[static_cast<size_t>(k)] * weight(p, product, column, k);
        }
        if (product.bias && (fault != 12 || column + 1 < product.columns))
          sum += static_cast<double>(product.bias[column]);
        if (product.residual && (fault != 13 || p.rows <= LinearParams::kFewRows)) {
          sum += static_cast<double>(product.residual[r * product.columns + column]);
        }
        float& to = product.result[r * product.columns + column];
        to = static_cast<float>(sum);
        if (fault == 17 && p.threads > 1) to = std::nextafter(to, 9.0F);
        if (fault == 18 && p.rows == 1) to = std::nextafter(to, 9.0F);
      }
    }
    if (fault == 16 && p.rows > 0) product.result[p.rows * product.columns] = 0;
  }
}

}  // namespace vlkv

int main(int, char** words) {
  const auto target = std::strcmp(words[1], "attend") == 0 ? vlkv_fuzz_attend : vlkv_fuzz_linear;
  vlkv::fault = std::atoi(words[2]);
  std::mt19937_64 random(std::strtoul(words[3], nullptr, 10));
  for (long left = std::atol(words[4]); left > 0; --left) {
    std::vector<uint8_t> data(random() % 600);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    target(data.data(), data.size());
  }
}
