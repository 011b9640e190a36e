#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "vlkv/attend.h"

namespace vlkv::test {
namespace {

constexpr double kUnit = 0x1p-24;  // half the distance of float32 numbers at 1

struct Case {
  AttendParams p;
  std::vector<float> query, key, value, key_cache, value_cache, result;
  std::vector<int32_t> last;

  Case(Random& random, int64_t batch, int64_t kv_heads, int64_t group, int64_t slots, int64_t dim) {
    p.batch = batch, p.kv_heads = kv_heads, p.query_heads = kv_heads * group, p.slots = slots,
    p.head_dim = dim;
    for (auto [vector, count] : {std::pair{&query, p.query_heads},
                                 {&key, kv_heads},
                                 {&value, kv_heads},
                                 {&key_cache, kv_heads * slots},
                                 {&value_cache, kv_heads * slots}}) {
      vector->resize(static_cast<size_t>(batch * count * dim));
      for (float& x : *vector) x = random.normal();
    }
    result.assign(query.size(), std::numeric_limits<float>::quiet_NaN());
    for (int64_t b = 0; b < batch; ++b) last.push_back(static_cast<int32_t>(random.integer(0, slots - 1)));
    p.query = query.data(), p.key = key.data(), p.value = value.data(), p.last = last.data();
    p.key_cache = key_cache.data(), p.value_cache = value_cache.data(), p.result = result.data();
  }

  double at(const std::vector<float>& cache, const std::vector<float>& added, int64_t head, int64_t slot,
            int64_t d) const {
    const bool fresh = slot == last[static_cast<size_t>(head / p.kv_heads)];
    return fresh ? added[static_cast<size_t>(head * p.head_dim + d)]
                 : cache[static_cast<size_t>((head * p.slots + slot) * p.head_dim + d)];
  }
};

// By the definition, in double; the caches as they were before the call.
void expect_right(const Case& before, const Case& after, const std::string& text) {
  const AttendParams& p = before.p;
  const double scale = 1 / std::sqrt(static_cast<double>(p.head_dim));
  for (int64_t h = 0; h < p.batch * p.query_heads; ++h) {
    const int64_t group = p.query_heads / p.kv_heads, head = h / group;
    const int64_t slots = before.last[static_cast<size_t>(h / p.query_heads)] + 1;
    std::vector<double> logit(static_cast<size_t>(slots));
    double largest = 0, maximum = -1e300, sum = 0;
    for (int64_t s = 0; s < slots; ++s) {
      double terms = 0;
      for (int64_t d = 0; d < p.head_dim; ++d) {
        const double term = scale * before.query[static_cast<size_t>(h * p.head_dim + d)] *
                            before.at(before.key_cache, before.key, head, s, d);
        logit[static_cast<size_t>(s)] += term;
        terms += std::abs(term);
      }
      largest = std::max(largest, terms);
      maximum = std::max(maximum, logit[static_cast<size_t>(s)]);
    }
    for (double& x : logit) sum += x = std::exp(x - maximum);
    // A logit: D + 3 roundings; a weight: its error and the maximum's, 16 units for exp2; sums over the
    // slots.
    const double error = static_cast<double>(p.head_dim + 3) * kUnit * largest;
    const double relative =
        2 * std::expm1(2 * error + 4 * kUnit * largest) + (32 + 2 * static_cast<double>(slots)) * kUnit;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      double mean = 0, magnitude = 0;
      for (int64_t s = 0; s < slots; ++s) {
        const double weighted =
            logit[static_cast<size_t>(s)] / sum * before.at(before.value_cache, before.value, head, s, d);
        mean += weighted, magnitude += std::abs(weighted);
      }
      EXPECT_NEAR(after.result[static_cast<size_t>(h * p.head_dim + d)], mean,
                  relative * magnitude + 0x1p-126)
          << text;
    }
  }
}

TEST(Attend, MatchesTheDefinition) {
  Random random(31);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (int i = 0; i < 40; ++i) {
      Case c(random, random.integer(1, 3), random.integer(1, 3),
             random.pick<int64_t>({1, 2, 3, 4, 5, 7, 8, 9}), random.integer(1, i % 8 ? 150 : 2200),
             random.integer(1, i % 3 ? 40 : 130));
      c.p.threads = static_cast<int>(random.integer(1, 3));
      const Case before = c;
      run_cpu(c.p);
      expect_right(before, c, std::string(kernels.name) + " " + std::to_string(i));
    }
  }
}

TEST(Attend, AppendsAndTouchesNoOtherSlot) {
  Random random(32);
  Case c(random, 2, 2, 3, 37, 5);
  const Case before = c;
  run_cpu(c.p);
  for (int64_t head = 0; head < 4; ++head) {
    for (int64_t slot = 0; slot < 37; ++slot) {
      for (int64_t d = 0; d < 5; ++d) {
        const auto at = static_cast<size_t>((head * 37 + slot) * 5 + d);
        EXPECT_EQ(c.key_cache[at], before.at(before.key_cache, before.key, head, slot, d));
        EXPECT_EQ(c.value_cache[at], before.at(before.value_cache, before.value, head, slot, d));
      }
    }
  }
}

// What a lone token attends to is its own value, whatever the cache makes of it.
TEST(Attend, ReadsATokensOwnRowAsItWasGiven) {
  Random random(35);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const DType type : {DType::kFloat16, DType::kBFloat16, DType::kInt8}) {
      for (const int64_t rows : {1, 2}) {
        const int64_t dim = random.integer(1, 40);
        Case c(random, 1, 1, 1, rows, dim);
        const auto of = [&] {
          std::vector<float> numbers(static_cast<size_t>(rows * dim));
          for (float& x : numbers) x = random.normal();
          return numbers;
        };
        const std::vector<float> query = of(), key = of(), value = of();
        std::vector<char> stored[2];
        for (auto& cache : stored) cache.resize(static_cast<size_t>(rows * row_bytes(type, dim)));
        std::vector<float> result(query.size());
        const int32_t first = 0, last = static_cast<int32_t>(rows - 1);
        c.p.rows = rows, c.p.cache = type, c.p.first = &first, c.p.last = &last;
        c.p.query = query.data(), c.p.key = key.data(), c.p.value = value.data();
        c.p.key_cache = stored[0].data(), c.p.value_cache = stored[1].data(), c.p.result = result.data();
        run_cpu(c.p);
        // int8 turns the value and the result: each of at most 5 stages and the factor rounds, relative to
        // the block's largest sum of magnitudes
        double largest = 0;
        for (int64_t d = 0; d < dim; ++d) largest += std::abs(value[static_cast<size_t>(d)]);
        const double room = type == DType::kInt8 ? 2 * 7 * kUnit * largest : 0;
        for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
          EXPECT_NEAR(result[d], value[d], room) << kernels.name << " " << static_cast<int>(type);
        }
      }
    }
  }
}

// With several rows, by the definition in double: queries, keys and values differ by up to 2^-9 of each,
// weights by another 2^-9.
TEST(Attend, MultipliesPromptsInBFloat16) {
  Random random(36);
  constexpr double kHalfUnit = 0x1p-9;
  for (int i = 0; i < 24; ++i) {
    const int64_t kv_heads = random.integer(1, 2), group = random.pick<int64_t>({1, 2, 3, 7});
    const int64_t rows = random.integer(2, i % 4 ? 40 : 300), before = random.integer(0, i % 3 ? 120 : 500);
    const int64_t dim = 2 * random.integer(1, 40), slots = before + rows;
    const DType type = random.pick({DType::kFloat32, DType::kBFloat16});
    Case c(random, 1, kv_heads, group, slots, dim);
    const auto of = [&](int64_t heads) {
      std::vector<float> numbers(static_cast<size_t>(rows * heads * dim));
      for (float& x : numbers) x = random.normal();
      return numbers;
    };
    const std::vector<float> query = of(kv_heads * group), key = of(kv_heads), value = of(kv_heads);
    std::vector<char> stored[2];
    const std::vector<float>* from[2] = {&c.key_cache, &c.value_cache};
    for (int kind = 0; kind < 2; ++kind) {
      stored[kind].resize(static_cast<size_t>(kv_heads * slots * row_bytes(type, dim)));
      cpu::kernels().from_float(from[kind]->data(), type, stored[kind].data(), kv_heads * slots * dim);
    }
    std::vector<float> result(query.size());
    const auto first = static_cast<int32_t>(before), last = static_cast<int32_t>(slots - 1);
    c.p.rows = rows, c.p.cache = type, c.p.first = &first, c.p.last = &last, c.p.result = result.data();
    c.p.query = query.data(), c.p.key = key.data(), c.p.value = value.data();
    c.p.key_cache = stored[0].data(), c.p.value_cache = stored[1].data();
    c.p.precision = Precision::kBFloat16;
    run_cpu(c.p);
    // What the caches hold now, widened; the own row as given.
    std::vector<float> wide[2];
    for (int kind = 0; kind < 2; ++kind) {
      wide[kind].resize(from[kind]->size());
      cpu::kernels().to_float(stored[kind].data(), type, wide[kind].data(), kv_heads * slots * dim);
    }
    const double scale = 1 / std::sqrt(static_cast<double>(dim));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t h = 0; h < kv_heads * group; ++h) {
        const int64_t head = h / group, seen = before + row + 1;
        const auto at = [&](int kind, int64_t slot, int64_t d) {
          const bool own = slot == seen - 1 && type != DType::kFloat32;
          const std::vector<float>& given = kind == 0 ? key : value;
          return static_cast<double>(own ? given[static_cast<size_t>((row * kv_heads + head) * dim + d)]
                                         : wide[kind][static_cast<size_t>((head * slots + slot) * dim + d)]);
        };
        std::vector<double> weight(static_cast<size_t>(seen));
        double most = -1e300, largest = 0, sum = 0;
        for (int64_t s = 0; s < seen; ++s) {
          double logit = 0, terms = 0;
          for (int64_t d = 0; d < dim; ++d) {
            const double q = query[static_cast<size_t>((row * kv_heads * group + h) * dim + d)];
            logit += scale * q * at(0, s, d), terms += std::abs(scale * q * at(0, s, d));
          }
          weight[static_cast<size_t>(s)] = logit;
          most = std::max(most, logit), largest = std::max(largest, terms);
        }
        for (double& x : weight) sum += x = std::exp(x - most);
        const double rounding = (static_cast<double>(dim + 3) + 2 * static_cast<double>(seen)) * kUnit;
        const double error = (2 * kHalfUnit + kHalfUnit * kHalfUnit + rounding) * largest;
        // A weight's own error and the sum's; then the rounding of weight and value.
        const double relative = std::expm1(2 * error) * 2 + 4 * kHalfUnit + rounding + 0x1p-17;
        for (int64_t d = 0; d < dim; ++d) {
          double mean = 0, magnitude = 0;
          for (int64_t s = 0; s < seen; ++s) {
            const double term = weight[static_cast<size_t>(s)] / sum * at(1, s, d);
            mean += term, magnitude += std::abs(term);
          }
          ASSERT_NEAR(result[static_cast<size_t>((row * kv_heads * group + h) * dim + d)], mean,
                      relative * magnitude + 0x1p-120)
              << i << " row " << row << " head " << h << " of dim " << dim;
        }
      }
    }
    // In calls of other sizes.
    const std::vector<float> whole = result;
    int64_t done = 0;
    while (done < rows) {
      int64_t some = std::min(rows - done, random.integer(2, rows));
      if (rows - done - some == 1) ++some;
      const auto start = static_cast<int32_t>(before + done),
                 end = static_cast<int32_t>(before + done + some - 1);
      AttendParams part = c.p;
      part.rows = some, part.first = &start, part.last = &end;
      part.query += done * kv_heads * group * dim, part.key += done * kv_heads * dim;
      part.value += done * kv_heads * dim, part.result += done * kv_heads * group * dim;
      run_cpu(part);
      done += some;
    }
    EXPECT_EQ(result, whole) << i;
    c.p.precision = Precision::kFloat32;
    run_cpu(c.p);
    EXPECT_EQ(result != whole, cpu::kernels().half_attend != nullptr) << i;
  }
}

TEST(Attend, ANotFiniteKeyReachesTheRowsThatSeeIt) {
  Random random(38);
  const int64_t rows = 130, dim = 8, bad = 100;
  for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
    for (const float number :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Case c(random, 1, 1, 1, rows, dim);
      std::vector<float> query(static_cast<size_t>(rows * dim), 1.0F), key = query, value = query,
                                                                       result = query;
      key[static_cast<size_t>(bad * dim)] = number;
      const int32_t first = 0, last = static_cast<int32_t>(rows - 1);
      c.p.rows = rows, c.p.first = &first, c.p.last = &last, c.p.precision = precision;
      c.p.query = query.data(), c.p.key = key.data(), c.p.value = value.data(), c.p.result = result.data();
      run_cpu(c.p);
      for (int64_t row = 0; row < rows; ++row) {
        EXPECT_EQ(std::isnan(result[static_cast<size_t>(row * dim)]), row >= bad) << row;
      }
    }
  }
}

// Single tokens, odd head sizes and processors without the instruction.
TEST(Attend, StaysInFloat32WhereItDoesNotMultiplyInBFloat16) {
  Random random(37);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const int64_t rows : {1, 4}) {
      const int64_t dim = rows == 1 || kernels.table->half_attend == nullptr ? 8 : 7;
      Case c(random, 1, 2, 2, rows, dim);
      std::vector<float> query(static_cast<size_t>(rows * 4 * dim)), added[2];
      for (float& x : query) x = random.normal();
      for (auto& numbers : added) {
        numbers.resize(static_cast<size_t>(rows * 2 * dim));
        for (float& x : numbers) x = random.normal();
      }
      std::vector<float> results[2];
      const int32_t first = 0, last = static_cast<int32_t>(rows - 1);
      for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16}) {
        std::vector<float>& result = results[precision == Precision::kBFloat16];
        result.resize(query.size());
        c.p.rows = rows, c.p.first = &first, c.p.last = &last, c.p.query = query.data();
        c.p.key = added[0].data(), c.p.value = added[1].data(), c.p.result = result.data();
        c.p.precision = precision;
        run_cpu(c.p);
      }
      EXPECT_EQ(results[0], results[1]) << kernels.name << " " << rows;
    }
  }
}

TEST(Attend, AFrameworksLoopGivesTheSameBits) {
  Random random(33);
  Case own(random, 2, 2, 4, 3000, 64);
  own.last = {2999, 1500};
  own.p.last = own.last.data();
  Case other = own;
  other.p.key_cache = other.key_cache.data(), other.p.value_cache = other.value_cache.data();
  other.p.result = other.result.data();
  int64_t calls = 0;
  const Loop backwards{[](void* owner, int64_t count, void (*body)(void*, int64_t), void* data) {
                         for (int64_t i = count; i-- > 0;) body(data, i), ++*static_cast<int64_t*>(owner);
                       },
                       &calls};
  run_cpu(own.p);
  run_cpu(other.p, backwards);
  EXPECT_EQ(calls, 2 * 2 * 3);
  EXPECT_EQ(own.result, other.result);
}

TEST(Attend, AnEmptyBatchIsValid) {
  AttendParams p;
  p.kv_heads = p.query_heads = p.head_dim = 1;
  EXPECT_NO_THROW(run_cpu(p));
}

TEST(Attend, RefusesWhatDoesNotFitBeforeItWrites) {
  Random random(34);
  const auto refused = [&](auto change, const std::string& text) {
    Case c(random, 2, 2, 2, 9, 4);
    const std::vector<float> cache = c.key_cache;
    change(c);
    try {
      run_cpu(c.p);
      ADD_FAILURE() << "not refused: " << text;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_EQ(c.key_cache, cache);
  };
  refused([](Case& c) { c.last[1] = 9; }, "[attend] prompt 1's new token takes slot 9, not in [0, 8]");
  refused([](Case& c) { c.last[0] = -1; }, "takes slot -1");
  refused([](Case& c) { c.p.query_heads = 3; }, "query_heads 3 is not a multiple of kv_heads 2");
  refused([](Case& c) { c.p.slots = 0; }, "slots is 0, not in [1,");
  refused([](Case& c) { c.p.head_dim = 0; }, "head_dim is 0");
  refused([](Case& c) { c.p.value_cache = nullptr; }, "value_cache is null");
  refused([](Case& c) { c.p.scale = -1; }, "scale is -1");
  refused([](Case& c) { c.p.threads = -1; }, "threads is -1");
  refused([](Case& c) { c.p.precision = static_cast<Precision>(3); }, "precision is 3, not in [0, 2]");
}

}  // namespace
}  // namespace vlkv::test
