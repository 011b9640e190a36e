#include <cmath>
#include <limits>

#include "score_case.h"

namespace vlkv::test::score {
namespace {

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
}  // namespace vlkv::test::score
