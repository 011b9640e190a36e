// Fuzzes Attend on CPUs with arbitrary sizes, slots and contents. A call either refuses and writes nothing,
// or stays inside its buffers, which the sanitizers check, and does what vlkv/attend.h says: it stores the
// new tokens and leaves other slots as they are, pads with zeros, answers the same on any number of threads,
// and answers tame numbers as the definition in float64 does.
#include "vlkv/attend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/rotate.h"
#include "fuzz/bytes.h"
#include "fuzz/targets.h"

namespace vlkv::fuzz {
namespace {

constexpr int64_t kCompared = 3;  // rows of a call that are compared with the definition

using Row = std::vector<double>;

struct Call {
  AttendParams p;
  std::vector<float> query, key, value, result;
  std::vector<uint8_t> key_cache, value_cache;
  std::vector<int32_t> first, last;

  void point(int missing) {
    p.query = query.data(), p.key = key.data(), p.value = value.data(), p.result = result.data();
    p.key_cache = key_cache.data(), p.value_cache = value_cache.data();
    p.first = first.empty() ? nullptr : first.data(), p.last = last.data();
    if (missing == 1) p.query = nullptr;
    if (missing == 2) p.key = nullptr;
    if (missing == 3) p.value = nullptr;
    if (missing == 4) p.key_cache = nullptr;
    if (missing == 5) p.value_cache = nullptr;
    if (missing == 6) p.last = nullptr;
    if (missing == 7) p.result = nullptr;
  }

  int64_t first_of(int64_t b) const {
    return first.empty() ? last[static_cast<size_t>(b)] : first[static_cast<size_t>(b)];
  }
  int64_t slots_of(int64_t b) const { return last[static_cast<size_t>(b)] + 1; }

  const uint8_t* row(const std::vector<uint8_t>& cache, int64_t b, int64_t head, int64_t slot) const {
    const int64_t at = (b * p.kv_heads + head) * p.slots + slot;
    return cache.data() + at * row_bytes(p.cache, p.head_dim);
  }

  // What row i of a call attends to in a slot: its own token as given, those before it as stored.
  Row seen(bool keys, int64_t b, int64_t i, int64_t head, int64_t slot) const {
    if (slot != first_of(b) + i) return stored(keys ? key_cache : value_cache, b, head, slot);
    const std::vector<float>& given = keys ? key : value;
    const auto at = given.begin() + ((b * p.rows + i) * p.kv_heads + head) * p.head_dim;
    return {at, at + p.head_dim};
  }

  // A row of a cache as it is stored; rotated rows are turned back.
  Row stored(const std::vector<uint8_t>& cache, int64_t b, int64_t head, int64_t slot) const {
    const uint8_t* from = row(cache, b, head, slot);
    Row made(static_cast<size_t>(p.head_dim));
    if (p.cache != DType::kInt8) {
      for (int64_t d = 0; d < p.head_dim; ++d) made[static_cast<size_t>(d)] = element(from, p.cache, d);
      return made;
    }
    const double scale = element(from + p.head_dim, DType::kFloat32, 0);
    std::vector<float> codes(made.size());
    for (size_t d = 0; d < made.size(); ++d) codes[d] = static_cast<int8_t>(from[d]);
    cpu::rotate(codes.data(), 1, p.head_dim);
    for (size_t d = 0; d < made.size(); ++d) made[d] = scale * static_cast<double>(codes[d]);
    return made;
  }
};

double norm(const Row& row) {
  double sum = 0;
  for (const double x : row) sum += x * x;
  return std::sqrt(sum);
}

// A bound of |a . b| that no order of sums exceeds. Rows that are multiplied rotated have other elements,
// whose products' magnitudes the norms bound.
double magnitude(const Row& a, const Row& b, bool rotated) {
  if (rotated) return norm(a) * norm(b);
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += std::abs(a[d] * b[d]);
  return sum;
}

void fill(Call& call, Bytes& in, Contents& contents) {
  AttendParams& p = call.p;
  const int64_t row = row_bytes(p.cache, p.head_dim), rows = p.batch * p.kv_heads * p.slots;
  call.query.resize(static_cast<size_t>(p.batch * p.rows * p.query_heads * p.head_dim));
  call.key.resize(static_cast<size_t>(p.batch * p.rows * p.kv_heads * p.head_dim));
  call.value.resize(call.key.size());
  call.result.assign(call.query.size(), 7.0F);
  for (auto* values : {&call.query, &call.key, &call.value}) contents.fill(*values);
  for (auto* cache : {&call.key_cache, &call.value_cache}) {
    cache->resize(static_cast<size_t>(rows * row));
    if (p.cache != DType::kInt8) {
      contents.fill(cache->data(), p.cache, rows * p.head_dim);
      continue;
    }
    for (uint8_t& code : *cache) code = static_cast<uint8_t>(contents.below(255) - 127);
    for (int64_t i = 0; i < rows; ++i) {
      const float scale = contents.number() / 127.0F;
      std::memcpy(cache->data() + i * row + p.head_dim, &scale, 4);
    }
  }
  const bool alone = in.byte() % 8 == 0, wrong = in.byte() % 32 == 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t most = std::min(alone ? 1 : p.rows, p.slots);
    const int64_t count = most > 0 ? 1 + in.byte() % most : 1, room = p.slots - count + 1;
    const int64_t first = room > 0 ? in.number(0, room - 1) : 0;
    call.first.push_back(static_cast<int32_t>(sum(first, wrong ? in.byte() % 5 - 2 : 0)));
    call.last.push_back(static_cast<int32_t>(sum(first, count - 1 + (wrong ? in.byte() % 5 - 2 : 0))));
  }
  if (alone) call.first.clear();
}

// The caches after a call: new tokens' rows as exact as the dtype is, all others as they were.
void check_caches(const Call& call, const Call& before) {
  const AttendParams& p = call.p;
  const auto row = static_cast<size_t>(row_bytes(p.cache, p.head_dim));
  for (const bool keys : {true, false}) {
    const auto& cache = keys ? call.key_cache : call.value_cache;
    const auto& old = keys ? before.key_cache : before.value_cache;
    const auto& fresh = keys ? call.key : call.value;
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        for (int64_t slot = 0; slot < p.slots; ++slot) {
          const int64_t token = slot - call.first_of(b);
          if (token < 0 || slot >= call.slots_of(b)) {
            check(std::memcmp(call.row(cache, b, head, slot), call.row(old, b, head, slot), row) == 0);
            continue;
          }
          const float* from =
              &fresh[static_cast<size_t>(((b * p.rows + token) * p.kv_heads + head) * p.head_dim)];
          if (p.cache == DType::kFloat32) check(std::memcmp(call.row(cache, b, head, slot), from, row) == 0);
          const Row now = call.stored(cache, b, head, slot);
          const Row given(from, from + p.head_dim);
          const double size = norm(given);
          for (size_t d = 0; d < now.size() && size < 60000; ++d) {
            double bound = 0x1p-8 * std::abs(given[d]);
            if (p.cache == DType::kFloat16) bound = 0x1p-11 * std::abs(given[d]) + 0x1p-25;
            // Each code errs by half a step of at most size / 127; turning back keeps the error's norm.
            if (p.cache == DType::kInt8)
              bound = size * (0.51 / 127) * std::sqrt(static_cast<double>(now.size()));
            check(std::abs(now[d] - given[d]) <= bound + 0x1p-126);
          }
        }
      }
    }
  }
}

// One row of one head by definition. A logit sums D products, each rounded to half a unit, so it errs by D
// half units of the products' magnitudes; a weight errs by its logit's error, as a share; a sum of C weighted
// values adds C half units. Rotations add one rounding a stage, less than D. In bfloat16 queries and keys err
// by 2^-9 of each, then weights, their sum and values.
void check_row(const Call& call, int64_t b, int64_t i, int64_t h) {
  const AttendParams& p = call.p;
  const int64_t head = h / (p.query_heads / p.kv_heads), slots = call.first_of(b) + i + 1;
  const auto dim = static_cast<size_t>(p.head_dim);
  const bool rotated = p.cache == DType::kInt8;
  const double scale =
      p.scale == 0.0F ? 1 / std::sqrt(static_cast<double>(dim)) : static_cast<double>(p.scale);
  const float* from = &call.query[static_cast<size_t>(((b * p.rows + i) * p.query_heads + h) * p.head_dim)];
  const Row query(from, from + dim);
  Row weights, result(dim), sizes(dim);
  double most = -HUGE_VAL, size = 0, total = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const Row key = call.seen(true, b, i, head, slot);
    double logit = 0;
    for (size_t d = 0; d < dim; ++d) logit += query[d] * key[d];
    weights.push_back(scale * logit);
    most = std::max(most, scale * logit);
    size = std::max(size, scale * magnitude(query, key, rotated));
  }
  for (double& weight : weights) total += weight = std::exp(weight - most);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const Row mean = call.seen(false, b, i, head, slot);
    const double weight = weights[static_cast<size_t>(slot)] / total, length = norm(mean);
    for (size_t d = 0; d < dim; ++d) {
      result[d] += weight * mean[d], sizes[d] += weight * (rotated ? length : std::abs(mean[d]));
    }
  }
  const auto count = static_cast<double>(slots), width = static_cast<double>(dim);
  const bool rounds = p.precision == Precision::kBFloat16 && p.rows > 1 && p.head_dim % 2 == 0;
  const double half = rounds ? 0x1p-9 : 0;
  const double error = ((2 * width + 8) * kUnit + 2.01 * half) * size;
  const double share = std::expm1(2 * error) + (count + 2 * width + 64) * kUnit + 4.1 * half;
  const float* answer =
      &call.result[static_cast<size_t>(((b * p.rows + i) * p.query_heads + h) * p.head_dim)];
  for (size_t d = 0; d < dim; ++d) {
    check(std::abs(static_cast<double>(answer[d]) - result[d]) <= share * sizes[d] + 0x1p-126);
  }
}

void check_padding(const Call& call) {
  const AttendParams& p = call.p;
  const int64_t row = p.query_heads * p.head_dim;
  for (int64_t b = 0; b < p.batch; ++b) {
    const auto begin = call.result.begin() + (b * p.rows + call.slots_of(b) - call.first_of(b)) * row;
    check(
        std::all_of(begin, call.result.begin() + (b + 1) * p.rows * row, [](float x) { return x == 0.0F; }));
  }
}

void run(Bytes& in) {
  Call call;
  AttendParams& p = call.p;
  const bool one = in.byte() % 2 == 0, many_slots = in.byte() % 16 == 0;
  p.batch = in.number(0, 2), p.kv_heads = in.number(1, 2);
  p.query_heads = product(p.kv_heads, in.number(1, 3)) + (in.byte() == 1 ? 1 : 0);
  p.rows = one ? 1 : in.number(0, 20), p.head_dim = in.number(1, many_slots ? 8 : 40);
  p.slots = many_slots ? in.number(900, 2200) : in.number(1, 130);
  p.cache = static_cast<DType>(in.byte() % 32 == 0 ? in.byte() : in.byte() % 4);
  const uint8_t scale = in.byte();
  p.scale = scale == 1 ? Contents::from_bits(static_cast<uint32_t>(in.number(0)))
                       : 0.1F * static_cast<float>(scale % 8);
  p.threads = static_cast<int>(in.number(3));
  p.precision = static_cast<Precision>(in.byte() % 32 == 0 ? in.byte() : in.byte() % 3);
  const bool huge = elements({p.batch, p.kv_heads, p.slots, p.head_dim}) < 0 ||
                    elements({p.batch, p.rows, p.query_heads, p.head_dim}) < 0 || p.kv_heads < 1 ||
                    p.query_heads < p.kv_heads;
  const int missing = in.byte() % 32 == 0 ? in.byte() % 8 : 0;
  Contents contents(in, in.byte() % 4 != 0);
  if (!huge) fill(call, in, contents);
  call.point(huge ? 1 : missing);
  const Call before = call;
  const std::string text = refusal([&] { huge ? validate(p) : run_cpu(p); });
  if (!text.empty() || huge || p.batch == 0 || p.rows == 0) {
    check(text.empty() || text.rfind("[attend] ", 0) == 0 || text == "out of memory");
    check(same_bytes(call.key_cache, before.key_cache) && same_bytes(call.value_cache, before.value_cache));
    check(same_bytes(call.result, before.result));
    return;
  }
  check_caches(call, before);
  check_padding(call);
  for (int64_t n = 0; contents.tame && n < kCompared; ++n) {
    const int64_t b = contents.below(p.batch), tokens = call.slots_of(b) - call.first_of(b);
    check_row(call, b, contents.below(tokens), contents.below(p.query_heads));
  }
  Call other = before;
  other.point(0), other.p.threads = p.threads == 1 ? 3 : 1;
  run_cpu(other.p);
  check(same_numbers(call.result, other.result) && same_bytes(call.key_cache, other.key_cache));
}

}  // namespace
}  // namespace vlkv::fuzz

extern "C" int vlkv_fuzz_attend(const uint8_t* data, size_t size) {
  vlkv::fuzz::Bytes in(data, size);
  vlkv::fuzz::run(in);
  return 0;
}
