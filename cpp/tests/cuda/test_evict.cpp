// Evict's kernels on the host, against the float64 oracle of the CPU's tests.
#include "backend.h"
#include "cuda/device/evict_args.cuh"
#include "evict_case.h"

namespace vlkv::test::evict {
namespace {

TEST(CudaEvict, MatchesTheDefinition) {
  Random random(120);
  for (int i = 0; i < rounds(120); ++i) {
    const DType type = random.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
    const int64_t slots = random.integer(0, i % 10 ? 60 : 400);
    const int64_t dim = i % 2 ? random.integer(1, 40) : random.pick<int64_t>({2, 8, 64});
    Case c(random, type, random.integer(0, 2), random.integer(1, 3), slots, dim, random.integer(0, slots + 2),
           random.integer(0, 1) == 1);
    c.per_head = random.integer(0, 1) == 1, c.zero_tail = random.integer(0, 3) != 0;
    c.merge = random.pick({Merge::kNone, Merge::kNearestMean});
    // Ties, NaN and infinities.
    const int64_t kind = random.integer(0, 3);
    for (float& x : c.score) {
      if (kind == 1) x = static_cast<float>(random.integer(0, 3));
      if (kind == 2) x = random.pick({kNan, kInf, -kInf, 0.0F, -0.0F, 1.0F});
      if (kind == 3 && random.integer(0, 1) == 0) x = kNan;
    }
    run_emulated(c.params());
    expect_right(c, type, "case " + std::to_string(i));
  }
}

TEST(CudaEvict, ManySlotsAndTheBitsOfTheCpu) {
  Random random(121);
  for (const Merge merge : {Merge::kNone, Merge::kNearestMean}) {
    for (const bool per_head : {false, true}) {
      Case c(random, DType::kFloat16, 1, 2, 9000, 8, 2700, false);
      c.length = {8900}, c.keep = {2600}, c.sinks = {4}, c.recent = {70};
      c.merge = merge, c.per_head = per_head;
      run_emulated(c.params());
      const std::vector<unsigned char> key = c.key_out.bytes(), value = c.value_out.bytes();
      const std::vector<int32_t> position = c.position;
      run_cpu(c.params());
      EXPECT_EQ(position, c.position);
      EXPECT_EQ(key, c.key_out.bytes());
      EXPECT_EQ(value, c.value_out.bytes());
    }
  }
}

// Scores of one first digit: as many as fit into shared memory, more, and all equal.
TEST(CudaEvict, ScoresThatBeginAlike) {
  Random random(128);
  for (const int64_t slots : {3000, 9000}) {
    for (const int64_t values : {int64_t{1}, int64_t{40}, int64_t{1} << 20}) {
      Case c(random, DType::kFloat16, 1, 1, slots, 8, slots, false);
      c.length = {slots - 7}, c.keep = {slots / 3}, c.sinks = {2}, c.recent = {5};
      for (float& x : c.score) {
        x = 1 + static_cast<float>(random.integer(0, values - 1)) / static_cast<float>(values) / 4;
        if (random.integer(0, 9) == 0) x = random.pick({kNan, -1.0F, 0.5F, 2.0F});
      }
      run_emulated(c.params());
      const std::vector<int32_t> position = c.position;
      run_cpu(c.params());
      EXPECT_EQ(position, c.position) << slots << " slots, " << values << " values";
    }
  }
}

TEST(CudaEvict, KeysAndValuesOfDifferentTypes) {
  Random random(122);
  Case c(random, DType::kFloat16, 1, 2, 50, 8, 20, false);
  c.length = {45}, c.keep = {20}, c.sinks = {1}, c.recent = {3};
  c.value = Tensor(random, DType::kFloat32, 1, 2, 50, 8, 1.0F, false);
  c.value_out = Tensor(random, DType::kFloat32, 1, 2, 20, 8, 1.0F, false);
  for (const Merge merge : {Merge::kNone, Merge::kNearestMean}) {
    c.merge = merge;
    run_emulated(c.params());
    expect_right(c, DType::kFloat16, "types");
  }
}

TEST(CudaEvict, ClampsNumbersThatTheHostCannotSee) {
  Random random(123);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
  struct Numbers {
    int64_t length, keep, sinks, recent;
  };
  const std::pair<Numbers, Numbers> cases[] = {{{kMost, kMost, kMost, kMost}, {40, 12, 12, 0}},
                                               {{kLeast, 5, 1, 1}, {0, 0, 0, 0}},
                                               {{30, kLeast, 4, 4}, {30, 0, 0, 0}},
                                               {{30, 10, -3, 99}, {30, 10, 0, 10}},
                                               {{30, 10, 8, 5}, {30, 10, 8, 2}}};
  for (const auto& [given, meant] : cases) {
    Case c(random, DType::kFloat16, 1, 2, 40, 8, 12, false);
    const auto set = [&](const Numbers& n) {
      c.length = {n.length}, c.keep = {n.keep}, c.sinks = {n.sinks}, c.recent = {n.recent};
    };
    set(given);
    run_emulated(c.params());
    set(meant);
    expect_right(c, DType::kFloat16, "clamped");
  }
}

TEST(CudaEvict, EveryCountOfRandomBits) {
  Random random(124);
  for (int i = 0; i < rounds(40); ++i) {
    const int64_t slots = random.integer(1, 300);
    Case c(random, DType::kFloat16, 1, 1, slots, 1, slots, false);
    for (float& x : c.score) x = std::bit_cast<float>(static_cast<uint32_t>(random.integer(0, 0xffffffffLL)));
    run_emulated(c.params());
    expect_right(c, DType::kFloat16, "bits");
  }
}

TEST(CudaEvict, ScoresAreOrderedAsNumbersAreAndNanComesLast) {
  const auto key = [](float x) { return cuda::ordered(std::bit_cast<uint32_t>(x)); };
  const float rising[] = {-kInf, -3e38F, -1.0F, -1e-45F, 0.0F, 1e-45F, 1.0F, 3e38F, kInf};
  for (size_t i = 1; i < std::size(rising); ++i) EXPECT_LT(key(rising[i - 1]), key(rising[i]));
  EXPECT_EQ(key(-0.0F), key(0.0F));
  EXPECT_EQ(key(kNan), 0U);
  EXPECT_EQ(key(-kNan), 0U);
  EXPECT_GT(key(-kInf), 0U);
}

TEST(CudaEvict, RefusesAWrongWorkspaceAndWrongSizes) {
  Random random(125);
  Case c(random, DType::kFloat32, 1, 2, 10, 4, 5, false);
  c.per_head = false;
  EXPECT_THROW(run_cuda(c.params(), nullptr, nullptr), InvalidArgument);
  EvictParams p = c.params();
  p.key_out.stride_s = 0;
  EXPECT_THROW(run_emulated(p), InvalidArgument);
  p = c.params();
  p.key.data = static_cast<const char*>(p.key.data) + 1;
  EXPECT_THROW(run_emulated(p), InvalidArgument);
}

}  // namespace
}  // namespace vlkv::test::evict
