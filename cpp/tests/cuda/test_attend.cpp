// Attend's kernels on the host, against its definition in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "backend.h"
#include "cases.h"

namespace vlkv::test::attend {
namespace {

constexpr auto kHalf = DType::kFloat16, kBrain = DType::kBFloat16;
constexpr int64_t kDims[] = {64, 80, 96, 128, 256};

struct Shape {
  int64_t batch, kv_heads, group, rows, slots, dim;
  std::string text(DType type) const {
    std::string all = type == kHalf ? "float16" : "bfloat16";
    for (const int64_t n : {batch, kv_heads, group, rows, slots, dim}) all += " " + std::to_string(n);
    return all;
  }
};

struct Case {
  Shape shape;
  DType type;
  Tensor query, key, value, key_cache, value_cache, result;
  std::vector<int64_t> length, count;
  float scale = 0.0F;

  Case(Random& random, const Shape& s, DType t, float spread, bool gaps)
      : shape(s),
        type(t),
        query(random, t, s.batch, s.kv_heads * s.group, s.rows, s.dim, spread, gaps, 8),
        key(random, t, s.batch, s.kv_heads, s.rows, s.dim, 1.0F, gaps, 8),
        value(random, t, s.batch, s.kv_heads, s.rows, s.dim, 1.0F, gaps, 8),
        key_cache(random, t, s.batch, s.kv_heads, s.slots, s.dim, 1.0F, gaps, 8),
        value_cache(random, t, s.batch, s.kv_heads, s.slots, s.dim, 1.0F, gaps, 8),
        result(random, t, s.batch, s.kv_heads * s.group, s.rows, s.dim, 1.0F, gaps, 8) {
    for (int64_t b = 0; b < s.batch; ++b) {
      length.push_back(random.integer(0, s.slots));
      count.push_back(random.integer(0, std::min(s.rows, s.slots - length.back())));
    }
  }

  AttendRowsParams params() {
    AttendRowsParams p;
    p.batch = shape.batch, p.kv_heads = shape.kv_heads, p.query_heads = shape.kv_heads * shape.group;
    p.rows = shape.rows, p.slots = shape.slots, p.head_dim = shape.dim;
    p.query = std::as_const(query).view(), p.key = std::as_const(key).view();
    p.value = std::as_const(value).view();
    p.key_cache = key_cache.view(), p.value_cache = value_cache.view();
    p.length = length.data(), p.count = count.data(), p.scale = scale;
    p.result = result.view();
    return p;
  }
};

// What slot `slot` holds after the call.
double cached(const Case& before, const Tensor& cache, const Tensor& added, int64_t b, int64_t h,
              int64_t slot, int64_t d) {
  const auto at = static_cast<size_t>(b);
  const int64_t row = slot - before.length[at];
  return row >= 0 && row < before.count[at] ? added.at(b, h, row, d) : cache.at(b, h, slot, d);
}

// A logit has D products of 16-bit numbers, exact in float32, and D additions and two factors: D + 3
// roundings of a unit each (matrix units cut off), relative to the sum of magnitudes. A weight: its logit's
// error and the maximum's, and 2^-21 of exp2; sums over the slots, one rounding each; and the rounding to 16
// bits, which in float16 has an absolute part below 2^-14. The result is rounded to 16 bits once.
void expect_right(const Case& before, const Case& after) {
  const Shape& s = before.shape;
  const double unit = 0x1p-23, narrow = before.type == kHalf ? 0x1p-11 : 0x1p-8;
  const double smallest = before.type == kHalf ? 0x1p-25 : 0.0;
  const double scale = before.scale > 0 ? before.scale : 1 / std::sqrt(static_cast<double>(s.dim));
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t head = 0; head < s.kv_heads * s.group; ++head) {
      const int64_t h = head / s.group;
      for (int64_t row = 0; row < s.rows; ++row) {
        if (row >= before.count[static_cast<size_t>(b)]) {
          for (int64_t d = 0; d < s.dim; ++d) ASSERT_EQ(after.result.at(b, head, row, d), 0.0);
          continue;
        }
        const int64_t slots = before.length[static_cast<size_t>(b)] + row + 1;
        std::vector<double> weight(static_cast<size_t>(slots));
        double largest = 0, maximum = -std::numeric_limits<double>::infinity(), sum = 0;
        for (int64_t slot = 0; slot < slots; ++slot) {
          double terms = 0, logit = 0;
          for (int64_t d = 0; d < s.dim; ++d) {
            const double term = scale * before.query.at(b, head, row, d) *
                                cached(before, before.key_cache, before.key, b, h, slot, d);
            logit += term, terms += std::abs(term);
          }
          weight[static_cast<size_t>(slot)] = logit;
          largest = std::max(largest, terms), maximum = std::max(maximum, logit);
        }
        for (double& x : weight) sum += x = std::exp(x - maximum);
        const double error = static_cast<double>(s.dim + 3) * unit * largest;
        const double relative =
            2 * std::expm1(2 * error) + 0x1p-20 + 2 * static_cast<double>(slots) * unit + narrow;
        for (int64_t d = 0; d < s.dim; ++d) {
          double mean = 0, magnitude = 0, values = 0;
          for (int64_t slot = 0; slot < slots; ++slot) {
            const double value = cached(before, before.value_cache, before.value, b, h, slot, d);
            const double part = weight[static_cast<size_t>(slot)] / sum * value;
            mean += part, magnitude += std::abs(part), values += std::abs(value);
          }
          const double tolerance =
              relative * magnitude + smallest * values / sum + narrow * std::abs(mean) + 0x1p-24;
          ASSERT_NEAR(after.result.at(b, head, row, d), mean, tolerance)
              << s.text(before.type) << ": prompt " << b << " head " << head << " row " << row << " element "
              << d;
        }
      }
      if (head % s.group != 0) continue;
      for (int64_t slot = 0; slot < s.slots; ++slot) {
        for (int64_t d = 0; d < s.dim; ++d) {
          ASSERT_EQ(after.key_cache.at(b, h, slot, d),
                    cached(before, before.key_cache, before.key, b, h, slot, d))
              << s.text(before.type) << ": slot " << slot;
          ASSERT_EQ(after.value_cache.at(b, h, slot, d),
                    cached(before, before.value_cache, before.value, b, h, slot, d));
        }
      }
    }
  }
}

void run_and_check(Case& c) {
  const Case before = c;
  run_emulated(c.params());
  expect_right(before, c);
}

TEST(CudaAttend, DecodesOneToken) {
  Random random(201);
  for (const DType type : {kHalf, kBrain}) {
    for (const int64_t dim : kDims) {
      Case c(random,
             {random.integer(1, 3), random.integer(1, 2), random.pick<int64_t>({1, 2, 3, 4, 7, 8, 16}), 1,
              random.integer(1, 300), dim},
             type, random.pick({0.3F, 1.0F, 3.0F}), random.integer(0, 1) == 1);
      run_and_check(c);
    }
  }
}

TEST(CudaAttend, ChunksOfAFewRowsAndOfMany) {
  Random random(202);
  for (const DType type : {kHalf, kBrain}) {
    for (const int64_t dim : kDims) {
      for (const int64_t rows : {random.integer(2, 16), random.integer(17, 90)}) {
        Case c(
            random,
            {random.integer(1, 2), 1, random.pick<int64_t>({1, 2, 3, 7}), rows, random.integer(1, 260), dim},
            type, 1.0F, random.integer(0, 1) == 1);
        run_and_check(c);
      }
    }
  }
}

TEST(CudaAttend, AWholePromptFromEmptyAndAFullCache) {
  Random random(203);
  for (const DType type : {kHalf, kBrain}) {
    Case whole(random, {1, 2, 2, 130, 130, 64}, type, 1.0F, false);
    whole.length = {0}, whole.count = {130};
    run_and_check(whole);
    Case last(random, {2, 1, 4, 1, 64, 128}, type, 1.0F, false);
    last.length = {63, 64}, last.count = {1, 0};
    run_and_check(last);
  }
}

TEST(CudaAttend, HeadSizesBetween) {
  Random random(204);
  for (const int64_t dim : {8, 16, 24, 72, 112, 136, 248}) {
    for (const int64_t rows : {1, 40}) {
      Case c(random, {1, 1, 1, rows, 150, dim}, kHalf, 1.0F, true);
      run_and_check(c);
    }
  }
}

TEST(CudaAttend, EmptySizes) {
  Random random(205);
  for (const Shape s : {Shape{0, 2, 1, 3, 4, 64}, Shape{2, 2, 1, 0, 4, 64}, Shape{2, 2, 2, 3, 0, 64}}) {
    Case c(random, s, kHalf, 1.0F, false);
    run_and_check(c);
  }
}

// What lies past the last slot is neither read nor written, whatever it is.
TEST(CudaAttend, SlotsPastTheLastDoNotMatter) {
  Random random(206);
  for (const int64_t rows : {1, 20}) {
    Case c(random, {1, 1, 2, rows, 200, 64}, kBrain, 1.0F, false);
    c.length = {70}, c.count = {rows};
    for (int64_t slot = 70; slot < 200; ++slot) {
      for (int64_t d = 0; d < 64; ++d) {
        c.key_cache.set(0, 0, slot, d, std::nanf(""));
        c.value_cache.set(0, 0, slot, d, std::nanf(""));
      }
    }
    run_emulated(c.params());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t d = 0; d < 64; ++d) ASSERT_TRUE(std::isfinite(c.result.at(0, 1, row, d)));
    }
    for (int64_t slot = 70 + rows; slot < 200; ++slot) ASSERT_TRUE(std::isnan(c.key_cache.at(0, 0, slot, 5)));
  }
}

TEST(CudaAttend, ALogitThatIsNotFinite) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  Random random(207);
  for (const float bad : {nan, inf, -inf}) {
    for (const int64_t slots : {40, 700}) {
      Case c(random, {1, 1, 2, 1, slots, 64}, kBrain, 1.0F, false);
      c.length = {slots - 1}, c.count = {1};
      for (int64_t head = 0; head < 2; ++head) c.query.set(0, head, 0, 3, 1.0F);
      c.key_cache.set(0, 0, 7, 3, bad);
      Case masked = c;
      run_emulated(c.params());
      // a weight of 0, which is also what a very small logit has
      masked.key_cache.set(0, 0, 7, 3, -1e30F);
      run_emulated(masked.params());
      for (int64_t d = 0; d < 64; ++d) {
        if (bad == -inf)
          ASSERT_EQ(c.result.at(0, 1, 0, d), masked.result.at(0, 1, 0, d));
        else
          ASSERT_TRUE(std::isnan(c.result.at(0, 1, 0, d)));
      }
    }
  }
}

TEST(CudaAttend, OnlyMinusInfinitiesAreNaN) {
  const float inf = std::numeric_limits<float>::infinity();
  Random random(208);
  Case c(random, {1, 1, 1, 1, 600, 64}, kHalf, 1.0F, false);
  c.length = {599}, c.count = {1};
  c.query.set(0, 0, 0, 0, 1.0F);
  for (int64_t slot = 0; slot < 600; ++slot) c.key_cache.set(0, 0, slot, 0, -inf);
  c.key.set(0, 0, 0, 0, -inf);
  run_emulated(c.params());
  for (int64_t d = 0; d < 64; ++d) ASSERT_TRUE(std::isnan(c.result.at(0, 0, 0, d)));
}

TEST(CudaAttend, SameBitsInAnyOrderOfThreads) {
  Random random(209);
  for (const int64_t rows : {1, 33}) {
    Case one(random, {1, 1, 3, rows, rounds(700), 80}, kHalf, 1.0F, true);
    Case two = one;
    run_emulated(one.params());
    run_emulated(two.params());
    EXPECT_EQ(one.result.bytes(), two.result.bytes());
  }
}

TEST(CudaAttend, ClampsWhatTheHostCannotSee) {
  Random random(210);
  Case right(random, {3, 1, 2, 4, 90, 64}, kHalf, 1.0F, false);
  Case wild = right;
  right.length = {0, 90, 88}, right.count = {0, 0, 2};
  wild.length = {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), 88};
  wild.count = {-5, 4, std::numeric_limits<int64_t>::max()};
  run_emulated(right.params());
  run_emulated(wild.params());
  EXPECT_EQ(right.result.bytes(), wild.result.bytes());
  EXPECT_EQ(right.key_cache.bytes(), wild.key_cache.bytes());
}

TEST(CudaAttend, Refuses) {
  Random random(211);
  Case c(random, {1, 1, 2, 2, 90, 64}, kHalf, 1.0F, false);
  const auto refused = [&](const char* text, auto change) {
    AttendRowsParams p = c.params();
    change(p);
    try {
      run_emulated(p);
      ADD_FAILURE() << "took " << text;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  refused("head_dim is 260, not in [8, 256]", [](auto& p) { p.head_dim = 260; });
  refused("head_dim is 60, not a multiple of 8", [](auto& p) { p.head_dim = 60; });
  refused("query has dtype 0", [](auto& p) { p.query.dtype = DType::kFloat32; });
  refused("value_cache has dtype 2, query 1", [](auto& p) { p.value_cache.dtype = kBrain; });
  refused("query_heads 3 is not a multiple of kv_heads 2",
          [](auto& p) { p.query_heads = 3, p.kv_heads = 2; });
  refused("key_cache is null", [](auto& p) { p.key_cache.data = nullptr; });
  refused("length is null", [](auto& p) { p.length = nullptr; });
  refused("count is null", [](auto& p) { p.count = nullptr; });
  refused("slots is -1", [](auto& p) { p.slots = -1; });
  refused("scale is nan", [](auto& p) { p.scale = std::nanf(""); });
  refused("key_cache has stride 65", [](auto& p) { p.key_cache.stride_s = 65; });
  refused("query's address is not a multiple of 16",
          [](auto& p) { p.query.data = static_cast<const char*>(p.query.data) + 2; });
  AttendRowsParams p = c.params();
  p.slots = 5000;
  EXPECT_THROW(run_cuda(p, nullptr, nullptr), InvalidArgument);
}

TEST(CudaAttend, WorkspaceNeverShrinksAsSizesGrow) {
  Random random(212);
  for (int i = 0; i < 3000; ++i) {
    AttendRowsParams p, larger;
    p.batch = random.integer(0, 70), p.kv_heads = random.integer(1, 8);
    p.query_heads = p.kv_heads * random.integer(1, 8);
    p.rows = random.integer(0, 300), p.slots = random.integer(0, 5000), p.head_dim = 64;
    larger = p;
    larger.batch += random.integer(0, 1), larger.kv_heads += random.integer(0, 2);
    larger.query_heads += random.integer(0, 9), larger.rows += random.integer(0, 70);
    larger.slots += random.integer(0, 600);
    ASSERT_LE(cuda_workspace_size(p), cuda_workspace_size(larger));
  }
}

}  // namespace
}  // namespace vlkv::test::attend
