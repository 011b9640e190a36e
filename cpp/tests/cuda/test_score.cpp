// Score's kernels on the host, against the float64 oracle of the CPU's tests.
#include <cmath>
#include <limits>

#include "backend.h"
#include "score_case.h"

namespace vlkv::test::score {
namespace {

constexpr auto kFull = DType::kFloat32, kHalf = DType::kFloat16, kBrain = DType::kBFloat16;

Result run_kernels(const Case& c) {
  Result r;
  run_emulated(params(c, r));
  return r;
}

std::string describe(const Shape& s, DType query, DType key) {
  std::string text = "query " + std::to_string(static_cast<int>(query)) + " key " +
                     std::to_string(static_cast<int>(key)) + " shape";
  for (const int64_t n : {s.batch, s.query_heads, s.kv_heads, s.rows, s.slots, s.dim})
    text += " " + std::to_string(n);
  return text;
}

TEST(CudaScore, MatchesTheDefinition) {
  Random random(102);
  for (int i = 0; i < rounds(40); ++i) {
    const int64_t kv_heads = random.integer(1, 2), group = random.pick<int64_t>({1, 1, 2, 3, 4, 7, 8});
    const Shape s{random.integer(1, 2),
                  kv_heads * group,
                  kv_heads,
                  random.integer(1, 30),
                  random.integer(1, 200),
                  i % 2 ? random.integer(1, 70) : random.pick<int64_t>({16, 64, 80, 128})};
    const DType query = random.pick({kFull, kHalf, kBrain});
    const DType key = random.integer(0, 4) == 0 ? random.pick({kFull, kHalf, kBrain}) : query;
    const Case c(random, s, query, key, random.pick({0.1F, 1.0F, 3.0F}), random.integer(0, 1) == 1);
    expect_close(c, run_kernels(c), oracle(c), describe(s, query, key));
  }
}

TEST(CudaScore, SplitsRowBlocksAndDeepHeads) {
  Random random(103);
  for (const DType type : {kHalf, kBrain, kFull}) {
    for (const Shape s :
         {Shape{1, 2, 1, 3, 1700, 16}, Shape{1, 8, 1, 25, 70, 64}, Shape{2, 2, 2, 65, 129, 128},
          Shape{1, 3, 1, 5, 66, 200}, Shape{1, 1, 1, 2, 65, 257}}) {
      const Case c(random, s, type, type, 1.0F, false);
      expect_close(c, run_kernels(c), oracle(c), describe(s, type, type));
    }
  }
}

TEST(CudaScore, RowsAtTheEndOfTheCacheAndPadding) {
  Random random(104);
  Case c(random, {2, 4, 2, 40, 300, 64}, kHalf, kHalf, 1.0F, false);
  for (size_t i = 0; i < 80; ++i) c.position[i] = i < 40 ? 260 + static_cast<int64_t>(i) : -1;
  expect_close(c, run_kernels(c), oracle(c), "causal rows");
  for (size_t i = 0; i < 80; ++i) c.position[i] = static_cast<int64_t>(i % 3);
  expect_close(c, run_kernels(c), oracle(c), "three keys");
}

TEST(CudaScore, EmptySizes) {
  Random random(105);
  for (const Shape s :
       {Shape{0, 2, 1, 3, 4, 8}, Shape{2, 2, 1, 0, 4, 8}, Shape{2, 2, 1, 0, 0, 8}, Shape{2, 2, 1, 3, 0, 8}}) {
    const Case c(random, s, kHalf, kHalf, 1.0F, false);
    const Result r = run_kernels(c);
    for (const float x : r.score) EXPECT_EQ(x, 0.0F);
    for (const int64_t n : r.pairs) EXPECT_EQ(n, 0);
    for (const int64_t n : r.below) EXPECT_EQ(n, 0);
    for (const float x : r.sparsity) EXPECT_EQ(x, 0.0F);
  }
}

TEST(CudaScore, SameBitsInAnyOrderOfThreads) {
  Random random(106);
  for (const DType type : {kHalf, kFull}) {
    const Case c(random, {1, 6, 2, 33, rounds(600), 48}, type, type, 1.0F, true);
    const Result one = run_kernels(c), two = run_kernels(c);
    EXPECT_EQ(one.score, two.score);
    EXPECT_EQ(one.below, two.below);
  }
}

TEST(CudaScore, ARowThatIsNotFiniteCountsNowhere) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Random random(107);
  for (int i = 0; i < rounds(12); ++i) {
    const DType type = random.pick({kFull, kHalf, kBrain});
    Case c(random, {2, 4, 2, 9, 150, 16}, type, type, 1.0F, false);
    for (int n = 0; n < 2; ++n) {
      const float bad = random.pick({nan, inf, -inf});
      if (i % 3 == 0) {
        c.query.set(random.integer(0, 1), random.integer(0, 3), random.integer(0, 8), random.integer(0, 15),
                    bad);
      } else {
        c.key.set(random.integer(0, 1), random.integer(0, 1), random.integer(0, 149), random.integer(0, 15),
                  bad);
      }
    }
    const Result r = run_kernels(c);
    for (const float x : r.score) ASSERT_TRUE(std::isfinite(x));
    Expected e = oracle(c);
    if (!std::isfinite(e.error)) e.error = 1e-5;
    for (size_t at = 0; at < e.score.size(); ++at)
      ASSERT_NEAR(r.score[at], e.score[at], 1e-4 * e.score[at] + 1e-30);
    EXPECT_EQ(r.pairs, e.pairs);
  }
}

TEST(CudaScore, ClampsPositionsThatTheHostCannotSee) {
  Random random(108);
  Case c(random, {1, 2, 1, 6, 90, 32}, kHalf, kHalf, 1.0F, false);
  Case wild = c;
  c.position = {89, -1, 3, 89, -1, 0};
  wild.position = {90, -2, 3, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min(), 0};
  const Result clamped = run_kernels(wild), right = run_kernels(c);
  EXPECT_EQ(clamped.score, right.score);
  EXPECT_EQ(clamped.pairs, right.pairs);
  expect_close(c, right, oracle(c), "clamped");
}

TEST(CudaScore, NarrowPositions) {
  Random random(109);
  const Case c(random, {2, 2, 1, 9, 40, 24}, kBrain, kBrain, 1.0F, false);
  const std::vector<int32_t> narrow(c.position.begin(), c.position.end());
  Result r;
  ScoreParams p = params(c, r);
  p.row_position = narrow.data(), p.row_position_type = IndexType::kInt32;
  run_emulated(p);
  expect_close(c, r, oracle(c), "int32 positions");
}

TEST(CudaScore, AccumulatesOverChunks) {
  Random random(110);
  const Case c(random, {2, 4, 2, 24, 130, 32}, kFull, kFull, 1.0F, false);
  const Result whole = run_kernels(c);
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
    run_emulated(p);
  }
  p.rows = 0;
  run_emulated(p);
  EXPECT_EQ(whole.pairs, parts.pairs);
  EXPECT_EQ(whole.below, parts.below);
  EXPECT_EQ(whole.sparsity, parts.sparsity);
  for (size_t i = 0; i < whole.score.size(); ++i) {
    EXPECT_NEAR(whole.score[i], parts.score[i], 200 * kEps * whole.score[i] + 1e-30);
  }
}

TEST(CudaScore, ThresholdsScalesAndLargeLogits) {
  Random random(111);
  Case c(random, {1, 2, 1, 5, 80, 64}, kHalf, kHalf, 1.0F, false);
  int64_t rows = 0;
  for (const int64_t n : c.position) rows += n >= 0 ? 2 : 0;
  c.threshold = 0.0F;
  EXPECT_EQ(run_kernels(c).below[0], 0);
  c.threshold = 1.0F;
  const Result r = run_kernels(c);
  EXPECT_EQ(r.below[0], r.pairs[0] - rows);  // all but each row's maximum
  for (const float scale : {1e-38F, 3.0F}) {
    Result scaled;
    ScoreParams p = params(c, scaled);
    p.scale = scale;
    run_emulated(p);
    double total = 0;
    for (const float x : scaled.score) total += x;
    EXPECT_NEAR(total, static_cast<double>(rows), 1e-4);
  }
}

TEST(CudaScore, RefusesAWrongWorkspace) {
  Random random(112);
  const Case c(random, {1, 2, 1, 5, 80, 64}, kHalf, kHalf, 1.0F, false);
  Result r;
  const ScoreParams p = params(c, r);
  EXPECT_THROW(run_cuda(p, nullptr, nullptr), InvalidArgument);
  alignas(256) char some[512];
  EXPECT_THROW(run_cuda(p, some + 1, nullptr), InvalidArgument);
  EXPECT_EQ(r.score[0], -7.0F);
}

TEST(CudaScore, WorkspaceNeverShrinksAsSizesGrow) {
  Random random(113);
  for (int i = 0; i < 2000; ++i) {
    ScoreParams p, larger;
    p.batch = random.integer(0, 3), p.kv_heads = random.integer(1, 8);
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
}  // namespace vlkv::test::score
