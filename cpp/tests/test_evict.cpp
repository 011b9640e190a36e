#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "cases.h"
#include "cpu/select.h"
#include "vlkv/evict.h"

namespace vlkv::test {
namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

struct Case {
  int64_t batch, heads, slots, dim, capacity;
  Tensor key, value, key_out, value_out;
  std::vector<float> score;
  std::vector<int64_t> length, keep, sinks, recent;
  std::vector<int32_t> position;
  bool per_head = true, zero_tail = true;
  Merge merge = Merge::kNone;

  Case(Random& random, DType type, int64_t b, int64_t h, int64_t c, int64_t d, int64_t cap, bool gaps)
      : batch(b),
        heads(h),
        slots(c),
        dim(d),
        capacity(cap),
        key(random, type, b, h, c, d, 1.0F, gaps),
        value(random, type, b, h, c, d, 1.0F, gaps),
        key_out(random, type, b, h, cap, d, 1.0F, gaps),
        value_out(random, type, b, h, cap, d, 1.0F, gaps),
        position(static_cast<size_t>(b * h * cap), -9) {
    for (int64_t i = 0; i < b * h * c; ++i) score.push_back(random.normal());
    for (int64_t i = 0; i < b; ++i) {
      length.push_back(random.integer(0, c));
      keep.push_back(random.integer(0, 4) == 0 ? random.integer(c, c + 5) : random.integer(0, cap));
      if (std::min(keep[i], length[i]) > cap) keep[i] = cap;
      sinks.push_back(random.integer(0, keep[i]));
      recent.push_back(random.integer(0, keep[i] - sinks[i]));
    }
  }

  EvictParams params(int threads = 0) {
    EvictParams p;
    p.batch = batch, p.kv_heads = heads, p.slots = slots, p.head_dim = dim, p.capacity = capacity;
    p.key = std::as_const(key).view(), p.value = std::as_const(value).view();
    p.key_out = key_out.view(), p.value_out = value_out.view();
    p.score = score.data(), p.score_stride_b = heads * slots, p.score_stride_h = slots;
    p.length = length.data(), p.keep = keep.data(), p.sinks = sinks.data(), p.recent = recent.data();
    p.position_out = position.data(), p.position_stride_b = heads * capacity, p.position_stride_h = capacity;
    p.per_head = per_head, p.merge = merge, p.zero_tail = zero_tail, p.threads = threads;
    return p;
  }
};

// The kept slots by a full stable sort.
std::vector<int64_t> oracle_slots(const Case& c, int64_t b, int64_t h) {
  const int64_t n = c.length[b], k = std::min(c.keep[b], n);
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  if (k == n) return all;
  const auto rating = [&](int64_t j) {
    if (c.per_head) return c.score[static_cast<size_t>((b * c.heads + h) * c.slots + j)];
    float sum = 0.0F;
    for (int64_t other = 0; other < c.heads; ++other) {
      sum += c.score[static_cast<size_t>((b * c.heads + other) * c.slots + j)];
    }
    return sum;
  };
  std::vector<int64_t> middle(all.begin() + c.sinks[b], all.end() - c.recent[b]);
  std::stable_sort(middle.begin(), middle.end(), [&](int64_t i, int64_t j) {
    const float x = rating(i), y = rating(j);
    return std::isnan(x) ? false : (std::isnan(y) ? true : x > y);
  });
  std::vector<int64_t> kept(all.begin(), all.begin() + c.sinks[b]);
  kept.insert(kept.end(), middle.begin(), middle.begin() + (k - c.sinks[b] - c.recent[b]));
  kept.insert(kept.end(), all.end() - c.recent[b], all.end());
  std::sort(kept.begin(), kept.end());
  return kept;
}

// For each token the place of the kept slot nearest to it, searched one by one; the lower of two.
std::vector<size_t> oracle_places(int64_t length, const std::vector<int64_t>& kept) {
  std::vector<size_t> places(static_cast<size_t>(length));
  for (int64_t j = 0; j < length; ++j) {
    size_t& nearest = places[static_cast<size_t>(j)];
    for (size_t i = 1; i < kept.size(); ++i) {
      if (std::abs(kept[i] - j) < std::abs(kept[nearest] - j)) nearest = i;
    }
  }
  return places;
}

// What belongs in one place, in float64: the kept token, or the mean over all tokens of the place.
std::vector<double> oracle_row(const Case& c, const Tensor& from, int64_t b, int64_t h,
                               const std::vector<size_t>& places, int64_t kept, size_t place,
                               double& magnitude, double& count) {
  std::vector<double> sum(static_cast<size_t>(c.dim));
  count = magnitude = 0;
  for (int64_t j = 0; j < c.length[b]; ++j) {
    if (j != kept && (c.merge == Merge::kNone || places[static_cast<size_t>(j)] != place)) continue;
    ++count;
    for (int64_t d = 0; d < c.dim; ++d) {
      sum[static_cast<size_t>(d)] += from.at(b, h, j, d);
      magnitude = std::max(magnitude, std::fabs(from.at(b, h, j, d)));
    }
  }
  for (double& x : sum) x /= count;
  return sum;
}

// One rounding to the cache's type (half an ulp), and count float32 additions and one division before it.
double tolerance(DType type, double count, double magnitude, double value) {
  const double own = type == DType::kFloat32 ? 0x1p-24 : type == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  return count <= 1 ? 0 : own * std::fabs(value) + 0x1p-24 * (count + 1) * magnitude + 0x1p-25;
}

void expect_right(Case& c, DType type, const std::string& label) {
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const std::vector<int64_t> kept = oracle_slots(c, b, h);
      const std::vector<size_t> places = oracle_places(c.length[b], kept);
      const int32_t* position = c.position.data() + (b * c.heads + h) * c.capacity;
      for (size_t i = 0; i < static_cast<size_t>(c.capacity); ++i) {
        if (i >= kept.size()) {
          ASSERT_EQ(position[i], c.zero_tail ? -1 : -9) << label;
          for (int64_t d = 0; c.zero_tail && d < c.dim; ++d) {
            ASSERT_EQ(c.key_out.at(b, h, static_cast<int64_t>(i), d), 0.0) << label;
            ASSERT_EQ(c.value_out.at(b, h, static_cast<int64_t>(i), d), 0.0) << label;
          }
          continue;
        }
        ASSERT_EQ(position[i], kept[i]) << label << " prompt " << b << " head " << h << " place " << i;
        for (const bool key : {true, false}) {
          double magnitude = 0, count = 0;
          const std::vector<double> row =
              oracle_row(c, key ? c.key : c.value, b, h, places, kept[i], i, magnitude, count);
          for (int64_t d = 0; d < c.dim; ++d) {
            const double got = (key ? c.key_out : c.value_out).at(b, h, static_cast<int64_t>(i), d);
            ASSERT_NEAR(got, row[static_cast<size_t>(d)],
                        tolerance(type, count, magnitude, row[static_cast<size_t>(d)]))
                << label;
          }
        }
      }
    }
  }
}

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
}  // namespace vlkv::test
