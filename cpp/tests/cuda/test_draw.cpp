// Draw's kernel on the host, against its definition.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend.h"
#include "cases.h"
#include "next_token.h"
#include "vlkv/c_api.h"

namespace vlkv::test::draw {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

double uniform(Random& random) {
  return static_cast<double>(random.integer(0, (int64_t{1} << 53) - 1)) * 0x1p-53;
}

struct Case {
  int64_t batch, vocab;
  std::vector<float> logits;
  std::vector<DrawSettings> settings;
  std::vector<int32_t> token;
  std::vector<float> best;

  // levels: how many values a logit may have, 0 for any
  Case(Random& random, int64_t b, int64_t v, int64_t levels, double spread = 4)
      : batch(b), vocab(v), token(static_cast<size_t>(b), -7), best(static_cast<size_t>(b)) {
    for (int64_t i = 0; i < b * v; ++i) {
      const double x = levels > 0
                           ? static_cast<double>(random.integer(0, levels - 1)) / static_cast<double>(levels)
                           : uniform(random);
      logits.push_back(static_cast<float>((2 * x - 1) * spread));
    }
    for (int64_t i = 0; i < b; ++i) {
      settings.push_back({std::exp(uniform(random) * 4 - 2),
                          static_cast<double>(random.pick<int64_t>({0, 1, 2, v / 2, v - 1, v, v + 1, 1000})),
                          random.pick<double>({1, 1, uniform(random), 1 - uniform(random) / 8}),
                          uniform(random)});
    }
  }

  DrawParams params() {
    DrawParams p;
    p.batch = batch, p.vocab = vocab, p.logits = logits.data(), p.settings = settings.data();
    p.token = token.data(), p.best = best.data();
    return p;
  }

  std::vector<float> row(int64_t b) const {
    return {logits.begin() + b * vocab, logits.begin() + (b + 1) * vocab};
  }

  void check() {
    run_cuda(params(), nullptr);
    for (int64_t b = 0; b < batch; ++b) {
      const DrawSettings& s = settings[static_cast<size_t>(b)];
      ASSERT_EQ(token[static_cast<size_t>(b)], drawn(row(b), s))
          << vocab << " logits, temperature " << s.temperature << ", top_k " << s.top_k << ", top_p "
          << s.top_p << ", uniform " << s.uniform;
      const int32_t largest = picked(row(b));
      const float logit = logits[static_cast<size_t>(b * vocab + largest)];
      ASSERT_EQ(__builtin_memcmp(&best[static_cast<size_t>(b)], &logit, sizeof logit), 0);
    }
  }
};

TEST(CudaDraw, DrawsAsTheHost) {
  Random random(270);
  for (const int64_t vocab : {1, 2, 31, 32, 33, 1023, 1024, 1025, 4095, 4097, 33000}) {
    Case(random, vocab > 2000 ? 1 : 3, vocab, 0).check();
  }
  for (int round = 0; round < rounds(10); ++round) {
    Case(random, random.integer(0, 4), random.integer(1, 1500), 0, random.pick<double>({0.1, 4, 60})).check();
  }
}

// Equal logits: all tie with the k-th, and at the edge of the top-p set those with the highest ids stay.
TEST(CudaDraw, Ties) {
  Random random(271);
  for (int round = 0; round < rounds(12); ++round) {
    Case c(random, random.integer(1, 3), random.integer(1, 1200), random.integer(1, 6));
    for (DrawSettings& s : c.settings) s.top_p = uniform(random);
    c.check();
  }
  Case c(random, 3, 10, 1);  // ten equal logits: top_p keeps the last of them
  c.settings = {{1, 0, 0.25, 0}, {1, 0, 0.25, 0.999}, {1, 3, 1, 0}};
  c.check();
  EXPECT_EQ(c.token, (std::vector<int32_t>{7, 9, 0}));
}

TEST(CudaDraw, OrdersWhatIsNoUsualNumber) {
  Random random(272);
  for (const auto& special :
       std::vector<std::vector<float>>{{kNan, 1}, {kInf, kNan}, {-kInf, 2}, {kInf, kInf}, {-0.0F, 0.0F}}) {
    Case c(random, 2, 700, 0);
    for (size_t i = 0; i < c.logits.size(); ++i) {
      if (i % 3 != 0) c.logits[i] = special[i % 2];
    }
    c.check();
  }
  Case c(random, 2, 40, 0);
  std::fill(c.logits.begin(), c.logits.end(), -kInf);  // nothing to draw from: damaged
  c.check();
  EXPECT_EQ(c.best[1], -kInf);
}

// What the host cannot see is put inside its range.
TEST(CudaDraw, SettingsOutsideTheirRange) {
  Random random(273);
  Case c(random, 1, 50, 0);
  const int32_t largest = picked(c.logits), first = drawn(c.logits, {1, 0, 1, 0}),
                last = drawn(c.logits, {1, 0, 1, std::nextafter(1.0, 0.0)});
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  const auto drawn = [&](double temperature, double top_k, double top_p, double uniform) {
    c.settings[0] = {temperature, top_k, top_p, uniform};
    run_cuda(c.params(), nullptr);
    return c.token[0];
  };
  EXPECT_EQ(drawn(0, 0, 1, 0.5), largest);
  EXPECT_EQ(drawn(-1, 0, 1, 0.5), largest);
  EXPECT_EQ(drawn(nan, 0, 1, 0.5), largest);
  EXPECT_EQ(drawn(1e-300, 0, 1, 0.5), largest);
  EXPECT_EQ(drawn(1, 1, 1, 0.9), largest);
  EXPECT_EQ(drawn(1, 0, 0, 0.9), largest);
  EXPECT_EQ(drawn(1, 0, -inf, 0.9), largest);
  EXPECT_EQ(drawn(1, -inf, inf, 0), first);
  EXPECT_EQ(drawn(1, inf, 1, -2), first);
  EXPECT_EQ(drawn(1, nan, nan, nan), first);
  EXPECT_EQ(drawn(1, 0, 1, 1), last);
  EXPECT_EQ(drawn(1, 0, 1, inf), last);
  EXPECT_EQ(drawn(1e300, 0, 1, 0.505), 25);
}

// Each token is drawn as often as its probability says: a grid of random numbers, whole weights.
TEST(CudaDraw, SharesOfAGrid) {
  Random random(274);
  constexpr int kGrid = 16;
  Case c(random, kGrid, 5, 0);
  const float weights[] = {4, 1, 8, 2, 1};
  for (int i = 0; i < kGrid; ++i) {
    for (int id = 0; id < 5; ++id) c.logits[static_cast<size_t>(5 * i + id)] = 3 + std::log2(weights[id]);
    c.settings[static_cast<size_t>(i)] = {1 / std::log(2.0), 0, 1, (i + 0.5) / kGrid};
  }
  c.check();
  for (int id = 0; id < 5; ++id) {
    EXPECT_EQ(std::count(c.token.begin(), c.token.end(), id), static_cast<int>(weights[id])) << id;
  }
}

TEST(CudaDraw, RefusesWhatItCannotTake) {
  Random random(275);
  Case c(random, 2, 9, 0);
  const auto refused = [&](auto change) {
    DrawParams p = c.params();
    change(p);
    EXPECT_THROW(run_cuda(p, nullptr), InvalidArgument);
  };
  refused([](auto& p) { p.batch = -1; });
  refused([](auto& p) { p.vocab = 0; });
  refused([](auto& p) { p.vocab = kMostDrawn + 1; });
  refused([](auto& p) { p.logits = nullptr; });
  refused([](auto& p) { p.settings = nullptr; });
  refused([](auto& p) { p.token = nullptr; });
  refused([](auto& p) { p.best = nullptr; });
}

#ifndef VLKV_PTX
TEST(CudaDraw, HasACEntryPoint) {
  Random random(276);
  Case c(random, 2, 40, 0);
  vlkv_draw_params given{2, 40, c.logits.data(), &c.settings[0].temperature, c.token.data(), c.best.data()};
  char text[200];
  ASSERT_EQ(vlkv_draw_cuda(&given, nullptr, text, sizeof text), VLKV_OK) << text;
  EXPECT_EQ(c.token[1], drawn(c.row(1), c.settings[1]));
  given.vocab = int64_t{1} << 23;
  EXPECT_EQ(vlkv_draw_cuda(&given, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(text), "[draw] vocab is 8388608, not in [1, 4194304]");
  EXPECT_EQ(vlkv_draw_cuda(nullptr, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
}
#endif

}  // namespace
}  // namespace vlkv::test::draw
