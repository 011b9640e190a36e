#include <cmath>
#include <limits>

#include "cases.h"
#include "vlkv/runtime.h"
#include "vlkv/score.h"

namespace vlkv::test {
namespace {

constexpr double kEps = 1.1920929e-7;

struct Shape {
  int64_t batch, query_heads, kv_heads, rows, slots, dim;
};

struct Case {
  Shape shape;
  Tensor query, key;
  std::vector<int64_t> position;
  float threshold = 0.01F;

  Case(Random& random, const Shape& s, DType query_type, DType key_type, float spread, bool gaps)
      : shape(s),
        query(random, query_type, s.batch, s.query_heads, s.rows, s.dim, spread, gaps),
        key(random, key_type, s.batch, s.kv_heads, s.slots, s.dim, spread, gaps) {
    for (int64_t i = 0; i < s.batch * s.rows; ++i) position.push_back(random.integer(-1, s.slots - 1));
  }
};

struct Result {
  std::vector<float> score;
  std::vector<int64_t> pairs, below;
  std::vector<float> sparsity;
};

ScoreParams params(const Case& c, Result& r, int threads = 0) {
  ScoreParams p;
  p.batch = c.shape.batch, p.query_heads = c.shape.query_heads, p.kv_heads = c.shape.kv_heads;
  p.rows = c.shape.rows, p.slots = c.shape.slots, p.head_dim = c.shape.dim;
  p.query = c.query.view(), p.key = c.key.view();
  p.row_position = c.position.data(), p.row_position_stride_b = c.shape.rows;
  p.threshold = c.threshold;
  r.score.resize(static_cast<size_t>(p.batch * p.kv_heads * p.slots), -7.0F);
  r.pairs.resize(static_cast<size_t>(p.batch), -7);
  r.below.resize(static_cast<size_t>(p.batch), -7);
  r.sparsity.resize(static_cast<size_t>(p.batch), -7.0F);
  p.score = r.score.data(), p.score_stride_h = p.slots, p.score_stride_b = p.kv_heads * p.slots;
  p.pairs = r.pairs.data(), p.below = r.below.data(), p.sparsity = r.sparsity.data();
  p.threads = threads;
  return p;
}

Result run(const Case& c, int threads = 0) {
  Result r;
  run_cpu(params(c, r, threads));
  return r;
}

struct Expected {
  std::vector<double> score;
  std::vector<int64_t> pairs, below_low, below_high;  // rounding may move pairs that lie on the threshold
  double error = 0;                                   // of a logit, in float32
};

// The definition, in float64, one row at a time. A logit in float32 is off by at most (D + 3) eps times the
// sum of the magnitudes of its products: D multiply-adds, the scale, log2(e), and the product with the scale.
Expected oracle(const Case& c) {
  const Shape& s = c.shape;
  Expected e;
  e.score.assign(static_cast<size_t>(s.batch * s.kv_heads * s.slots), 0.0);
  e.pairs.assign(static_cast<size_t>(s.batch), 0);
  e.below_low = e.below_high = e.pairs;
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.dim));
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.query_heads; ++h) {
      const int64_t kv = h / (s.query_heads / s.kv_heads);
      for (int64_t i = 0; i < s.rows; ++i) {
        const int64_t keys = c.position[static_cast<size_t>(b * s.rows + i)] + 1;
        std::vector<double> logit(static_cast<size_t>(keys));
        double error = 0;
        for (int64_t j = 0; j < keys; ++j) {
          double magnitude = 0;
          for (int64_t d = 0; d < s.dim; ++d) {
            const double product = c.query.at(b, h, i, d) * c.key.at(b, kv, j, d) * scale;
            logit[static_cast<size_t>(j)] += product;
            magnitude += std::fabs(product);
          }
          error = std::max(error, kEps * static_cast<double>(s.dim + 3) * magnitude);
        }
        double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
        bool finite = keys > 0;
        for (const double x : logit) {
          finite = finite && !std::isnan(x) && x < std::numeric_limits<double>::infinity();
          maximum = std::max(maximum, x);
        }
        if (!finite || std::isinf(maximum)) continue;
        for (const double x : logit) sum += std::exp(x - maximum);
        const auto at = static_cast<size_t>(b);
        e.pairs[at] += keys;
        const double limit = maximum + std::log(static_cast<double>(c.threshold));
        for (int64_t j = 0; j < keys; ++j) {
          const double x = logit[static_cast<size_t>(j)];
          e.score[static_cast<size_t>((b * s.kv_heads + kv) * s.slots + j)] += std::exp(x - maximum) / sum;
          e.below_low[at] += x < limit - 2 * error - 1e-6 ? 1 : 0;
          e.below_high[at] += x < limit + 2 * error + 1e-6 ? 1 : 0;
        }
        e.error = std::max(e.error, error);
      }
    }
  }
  return e;
}

// A weight is exp of a logit less the maximum: relative error 2 error; the softmax's sum doubles it; then
// float32 sums of positive terms, at most one eps for each row and each of the tiles' additions.
void expect_close(const Case& c, const Result& r, const Expected& e, const std::string& label) {
  const double terms =
      static_cast<double>(c.shape.rows * c.shape.query_heads) + 96 + static_cast<double>(c.shape.slots) / 96;
  const double tolerance = 2 * std::expm1(2 * e.error) + kEps * (terms + 16);
  for (size_t i = 0; i < e.score.size(); ++i) {
    ASSERT_NEAR(r.score[i], e.score[i], tolerance * e.score[i] + 1e-30) << label << " slot " << i;
  }
  for (size_t b = 0; b < e.pairs.size(); ++b) {
    ASSERT_EQ(r.pairs[b], e.pairs[b]) << label;
    ASSERT_GE(r.below[b], e.below_low[b]) << label;
    ASSERT_LE(r.below[b], e.below_high[b]) << label;
    ASSERT_FLOAT_EQ(r.sparsity[b],
                    r.pairs[b] ? static_cast<float>(r.below[b]) / static_cast<float>(r.pairs[b]) : 0.0F);
  }
}

std::string describe(const NamedKernels& kernels, const Shape& s) {
  std::string text = kernels.name;
  for (const int64_t n : {s.batch, s.query_heads, s.kv_heads, s.rows, s.slots, s.dim})
    text += " " + std::to_string(n);
  return text;
}

TEST(Score, MatchesTheDefinition) {
  const auto half = DType::kFloat16, brain = DType::kBFloat16, full = DType::kFloat32;
  Random random(2);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (int i = 0; i < 60; ++i) {
      const int64_t kv_heads = random.integer(1, 3), group = random.pick<int64_t>({1, 1, 2, 3, 4, 7, 8});
      const Shape s{random.integer(0, 3),
                    kv_heads * group,
                    kv_heads,
                    random.integer(0, 40),
                    random.integer(1, i % 5 ? 130 : 700),
                    random.integer(1, 70)};
      const Case c(random, s, random.pick({full, half, brain}), random.pick({full, half, brain}),
                   random.pick({0.1F, 1.0F, 3.0F}), i % 2 == 0);
      expect_close(c, run(c, random.pick({1, 2, 5})), oracle(c), describe(kernels, s));
    }
  }
}

TEST(Score, BlocksOfRowsAndManyTiles) {
  Random random(3);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const Shape s :
         {Shape{1, 8, 1, 50, 900, 64}, Shape{1, 2, 2, 3, 5000, 16}, Shape{2, 4, 4, 70, 97, 128}}) {
      const Case c(random, s, DType::kFloat32, DType::kFloat32, 1.5F, false);
      expect_close(c, run(c), oracle(c), describe(kernels, s));
    }
  }
}

TEST(Score, EmptySizesAndPaddingRows) {
  Random random(4);
  for (const Shape s :
       {Shape{0, 2, 1, 3, 4, 8}, Shape{2, 2, 1, 0, 4, 8}, Shape{2, 2, 1, 0, 0, 8}, Shape{2, 2, 1, 3, 0, 8}}) {
    const Case c(random, s, DType::kFloat32, DType::kFloat32, 1.0F, false);
    const Result r = run(c);
    for (const float x : r.score) EXPECT_EQ(x, 0.0F);
    for (const int64_t n : r.pairs) EXPECT_EQ(n, 0);
    for (const float x : r.sparsity) EXPECT_EQ(x, 0.0F);
  }
  Case c(random, {2, 4, 2, 9, 50, 16}, DType::kFloat32, DType::kFloat32, 1.0F, false);
  std::fill(c.position.begin(), c.position.begin() + 9, -1);
  const Result r = run(c);
  EXPECT_EQ(r.pairs[0], 0);
  EXPECT_EQ(r.sparsity[0], 0.0F);
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(r.score[i], 0.0F);
  expect_close(c, r, oracle(c), "padding");
}

TEST(Score, SameBitsForEveryNumberOfThreads) {
  Random random(5);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const Shape s : {Shape{1, 6, 1, 40, 2500, 64}, Shape{2, 6, 3, 33, 1200, 48}}) {
      const Case c(random, s, DType::kFloat32, DType::kFloat16, 1.0F, true);
      const Result one = run(c, 1);
      for (const int threads : {2, 3, 4, 7}) {
        const Result many = run(c, threads);
        EXPECT_EQ(one.score, many.score) << kernels.name << " " << threads;
        EXPECT_EQ(one.pairs, many.pairs);
        EXPECT_EQ(one.below, many.below);
      }
    }
  }
}

TEST(Score, ARowThatIsNotFiniteCountsNowhere) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Random random(6);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (int i = 0; i < 30; ++i) {
      Case c(random, {2, 4, 2, 9, 230, 16}, DType::kFloat32, DType::kFloat32, 1.0F, false);
      const float bad = random.pick({nan, inf, -inf});
      for (int n = 0; n < 2; ++n) {
        if (i % 3 == 0) {
          c.query.set(random.integer(0, 1), random.integer(0, 3), random.integer(0, 8), random.integer(0, 15),
                      bad);
        } else {
          c.key.set(random.integer(0, 1), random.integer(0, 1), random.integer(0, 229), random.integer(0, 15),
                    bad);
        }
      }
      const Result r = run(c);
      for (const float x : r.score) ASSERT_TRUE(std::isfinite(x));
      Expected e = oracle(c);
      if (!std::isfinite(e.error)) e.error = 1e-5;
      for (size_t at = 0; at < e.score.size(); ++at)
        ASSERT_NEAR(r.score[at], e.score[at], 1e-4 * e.score[at] + 1e-30);
      EXPECT_EQ(r.pairs, e.pairs) << kernels.name;
    }
  }
}

TEST(Score, LargeLogitsDoNotOverflow) {
  Random random(7);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    const Case c(random, {1, 2, 1, 20, 400, 32}, DType::kFloat32, DType::kFloat32, 60.0F, false);
    const Result r = run(c);
    double total = 0;
    for (const float x : r.score) total += x;
    int64_t rows = 0;
    for (const int64_t n : c.position) rows += n >= 0 ? 2 : 0;
    EXPECT_NEAR(total, static_cast<double>(rows), 1e-4) << kernels.name;
    EXPECT_EQ(r.pairs, oracle(c).pairs);
  }
}

TEST(Score, AccumulatesOverChunks) {
  Random random(8);
  const Case c(random, {2, 4, 2, 24, 300, 32}, DType::kFloat32, DType::kFloat32, 1.0F, false);
  const Result whole = run(c);
  Result parts;
  ScoreParams p = params(c, parts);
  std::fill(parts.score.begin(), parts.score.end(), 0.0F);
  std::fill(parts.pairs.begin(), parts.pairs.end(), 0);
  std::fill(parts.below.begin(), parts.below.end(), 0);
  p.accumulate = true;
  for (int64_t begin = 0; begin < 24; begin += 10) {
    p.rows = std::min<int64_t>(10, 24 - begin);
    p.query.data = c.query.bytes().data() + begin * p.query.stride_s * 4;
    p.row_position = c.position.data() + begin;
    run_cpu(p);
  }
  EXPECT_EQ(whole.pairs, parts.pairs);
  EXPECT_EQ(whole.below, parts.below);
  EXPECT_EQ(whole.sparsity, parts.sparsity);
  for (size_t i = 0; i < whole.score.size(); ++i) {
    EXPECT_NEAR(whole.score[i], parts.score[i], 200 * kEps * whole.score[i] + 1e-30);
  }
}

TEST(Score, ThresholdsAtTheEnds) {
  Random random(9);
  Case c(random, {1, 2, 1, 5, 64, 8}, DType::kFloat32, DType::kFloat32, 1.0F, false);
  c.threshold = 0.0F;
  EXPECT_EQ(run(c).below[0], 0);
  c.threshold = 1.0F;
  const Result r = run(c);
  int64_t rows = 0;
  for (const int64_t n : c.position) rows += n >= 0 ? 2 : 0;
  EXPECT_EQ(r.below[0], r.pairs[0] - rows);  // all but each row's maximum
}

TEST(Score, RefusesWithTheValueAndTheLimit) {
  Random random(10);
  const auto refusal = [&](auto&& change) {
    Case c(random, {1, 4, 2, 3, 10, 8}, DType::kFloat32, DType::kFloat32, 1.0F, false);
    Result r;
    ScoreParams p = params(c, r);
    change(c, p);
    try {
      run_cpu(p);
    } catch (const InvalidArgument& error) {
      for (const float x : r.score) EXPECT_EQ(x, -7.0F) << "written before the refusal";
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal([](Case& c, ScoreParams&) { c.position[1] = 10; }),
            "[score] row_position[0, 1] is 10, not in [-1, 10)");
  EXPECT_EQ(refusal([](Case& c, ScoreParams&) { c.position[0] = -2; }),
            "[score] row_position[0, 0] is -2, not in [-1, 10)");
  EXPECT_EQ(refusal([](Case&, ScoreParams& p) { p.query_heads = 5; }),
            "[score] query_heads 5 is not a multiple of kv_heads 2");
  EXPECT_EQ(refusal([](Case&, ScoreParams& p) { p.threshold = 1.5F; }),
            "[score] threshold is 1.5, not in [0, 1]");
  EXPECT_EQ(refusal([](Case&, ScoreParams& p) { p.head_dim = 0; }),
            "[score] head_dim is 0, not in [1, 4096]");
  EXPECT_EQ(refusal([](Case&, ScoreParams& p) { p.key.data = nullptr; }), "[score] key is null");
  EXPECT_NE(refusal([](Case&, ScoreParams& p) { p.scale = std::numeric_limits<float>::quiet_NaN(); }), "");
  EXPECT_NE(refusal([](Case&, ScoreParams& p) { p.threshold = std::numeric_limits<float>::quiet_NaN(); }),
            "");
  EXPECT_NE(refusal([](Case&, ScoreParams& p) { p.rows = -1; }), "");
  EXPECT_NE(refusal([](Case&, ScoreParams& p) { p.key.dtype = static_cast<DType>(9); }), "");
  EXPECT_NE(refusal([](Case&, ScoreParams& p) { p.score_stride_h = 3; }), "");
}

}  // namespace
}  // namespace vlkv::test
