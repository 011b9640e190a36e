#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "cpu/select.h"
#include "evict_case.h"

namespace vlkv::test::evict {
namespace {

TEST(Evict, MatchesTheDefinition) {
  Random random(20);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (int i = 0; i < 300; ++i) {
      const DType type = random.pick({DType::kFloat32, DType::kFloat16, DType::kBFloat16});
      const int64_t slots = random.integer(0, i % 10 ? 40 : 400);
      Case c(random, type, random.integer(0, 3), random.integer(1, 3), slots, random.integer(1, 40),
             random.integer(0, slots + 2), random.integer(0, 1) == 1);
      c.per_head = random.integer(0, 1) == 1, c.zero_tail = random.integer(0, 3) != 0;
      c.merge = random.pick({Merge::kNone, Merge::kNearestMean});
      // Ties, NaN and infinities.
      const int64_t kind = random.integer(0, 3);
      for (float& x : c.score) {
        if (kind == 1) x = static_cast<float>(random.integer(0, 3));
        if (kind == 2) x = random.pick({kNan, kInf, -kInf, 0.0F, -0.0F, 1.0F});
        if (kind == 3 && random.integer(0, 1) == 0) x = kNan;
      }
      run_cpu(c.params(random.pick({1, 2, 3})));
      expect_right(c, type, std::string(kernels.name) + " case " + std::to_string(i));
    }
  }
}

TEST(Evict, ManySlots) {
  Random random(21);
  for (const bool merge : {false, true}) {
    Case c(random, DType::kFloat16, 1, 2, 3000, 8, 700, false);
    c.length = {2900}, c.keep = {700}, c.sinks = {4}, c.recent = {70};
    c.merge = merge ? Merge::kNearestMean : Merge::kNone;
    run_cpu(c.params());
    expect_right(c, DType::kFloat16, "many slots");
  }
}

TEST(Evict, SameBitsForEveryNumberOfThreads) {
  Random random(22);
  Case c(random, DType::kFloat32, 2, 3, 2000, 16, 900, false);
  c.length = {2000, 1500}, c.keep = {900, 800}, c.sinks = {0, 3}, c.recent = {10, 0};
  c.merge = Merge::kNearestMean;
  run_cpu(c.params(1));
  const std::vector<unsigned char> key = c.key_out.bytes(), value = c.value_out.bytes();
  const std::vector<int32_t> position = c.position;
  for (const int threads : {2, 3, 8}) {
    run_cpu(c.params(threads));
    EXPECT_EQ(key, c.key_out.bytes());
    EXPECT_EQ(value, c.value_out.bytes());
    EXPECT_EQ(position, c.position);
  }
}

TEST(Evict, CopiesNanPayloadsAsTheyAre) {
  Random random(23);
  Case c(random, DType::kFloat32, 1, 1, 10, 4, 3, false);
  c.length = {10}, c.keep = {3}, c.sinks = {1}, c.recent = {1};
  const uint32_t payload = 0x7fa12345;
  std::memcpy(c.key.view().data, &payload, 4);
  run_cpu(c.params());
  uint32_t got;
  std::memcpy(&got, c.key_out.bytes().data(), 4);
  EXPECT_EQ(got, payload);
}

TEST(Evict, LeavesTheTailWhereToldTo) {
  Random random(24);
  Case c(random, DType::kFloat32, 1, 1, 10, 4, 6, false);
  c.length = {10}, c.keep = {3}, c.sinks = {0}, c.recent = {0}, c.zero_tail = false;
  const std::vector<unsigned char> before = c.key_out.bytes();
  run_cpu(c.params());
  EXPECT_EQ(std::memcmp(before.data() + 3 * 16, c.key_out.bytes().data() + 3 * 16, 3 * 16), 0);
  EXPECT_EQ(c.position[3], -9);
}

TEST(Select, EveryCountOfRandomBits) {
  Random random(25);
  for (int i = 0; i < 200; ++i) {
    const int64_t n = random.integer(0, 300), begin = random.integer(0, n);
    std::vector<float> score(static_cast<size_t>(n));
    for (float& x : score) x = std::bit_cast<float>(static_cast<uint32_t>(random.integer(0, 0xffffffffLL)));
    std::vector<int64_t> order(static_cast<size_t>(n - begin));
    std::iota(order.begin(), order.end(), begin);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const float x = score[static_cast<size_t>(a)], y = score[static_cast<size_t>(b)];
      return std::isnan(x) ? false : (std::isnan(y) ? true : x > y);
    });
    const int64_t count = random.integer(0, n - begin);
    std::vector<uint32_t> scratch(static_cast<size_t>(2 * (n - begin)));
    std::vector<int32_t> slots(static_cast<size_t>(count));
    cpu::select_highest(score.data(), begin, n, count, scratch.data(), slots.data());
    std::sort(order.begin(), order.begin() + count);
    for (int64_t j = 0; j < count; ++j)
      ASSERT_EQ(slots[static_cast<size_t>(j)], order[static_cast<size_t>(j)]);
  }
}

TEST(Evict, RefusesWithTheValueAndTheLimit) {
  Random random(26);
  const auto refusal = [&](auto&& change) {
    Case c(random, DType::kFloat32, 1, 2, 10, 4, 5, false);
    c.length = {10}, c.keep = {5}, c.sinks = {1}, c.recent = {1};
    EvictParams p = c.params();
    change(c, p);
    const std::vector<unsigned char> before = c.key_out.bytes();
    try {
      run_cpu(p);
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(before, c.key_out.bytes()) << "written before the refusal";
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal([](Case& c, EvictParams&) { c.sinks[0] = 5; }),
            "[evict] sinks[0] + recent[0] is 5 + 1, more than keep 5");
  EXPECT_EQ(refusal([](Case& c, EvictParams&) { c.length[0] = 11; }),
            "[evict] length[0] is 11, not in [0, 10]");
  EXPECT_EQ(refusal([](Case& c, EvictParams&) { c.keep[0] = 6; }),
            "[evict] capacity is 5, less than the 6 slots that prompt 0 keeps");
  EXPECT_EQ(refusal([](Case& c, EvictParams&) { c.recent[0] = -1; }), "[evict] recent[0] is -1, less than 0");
  EXPECT_EQ(refusal([](Case& c, EvictParams&) { c.recent[0] = std::numeric_limits<int64_t>::max(); }),
            "[evict] sinks[0] + recent[0] is 1 + 9223372036854775807, more than keep 5");
  EXPECT_EQ(refusal([](Case&, EvictParams& p) { p.key_out.dtype = DType::kFloat16; }),
            "[evict] key_out has dtype 1, key has 0");
  EXPECT_EQ(refusal([](Case&, EvictParams& p) { p.merge = static_cast<Merge>(2); }),
            "[evict] merge is 2, not none (0) or nearest_mean (1)");
  EXPECT_EQ(refusal([](Case&, EvictParams& p) { p.threads = -1; }),
            "[evict] threads is -1, not in [0, 1024]");
  EXPECT_EQ(refusal([](Case&, EvictParams& p) { p.score = nullptr; }), "[evict] score is null");
  EXPECT_NE(refusal([](Case&, EvictParams& p) { p.keep = nullptr; }), "");
  EXPECT_NE(refusal([](Case&, EvictParams& p) { p.key_out.stride_s = 0; }), "");
  EXPECT_NE(refusal([](Case&, EvictParams& p) { p.position_stride_h = 1; }), "");
}

}  // namespace
}  // namespace vlkv::test::evict
