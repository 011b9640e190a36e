// Pick's kernel on the host, against a plain search.
#include <cmath>
#include <limits>

#include "backend.h"
#include "cases.h"
#include "next_token.h"
#include "vlkv/c_api.h"

namespace vlkv::test::pick {
namespace {

struct Case {
  int64_t batch, vocab;
  std::vector<float> logits;
  std::vector<int32_t> token;
  std::vector<float> best;

  Case(Random& random, int64_t b, int64_t v)
      : batch(b), vocab(v), token(static_cast<size_t>(b), -7), best(static_cast<size_t>(b)) {
    // few values, so that many are equal
    for (int64_t i = 0; i < b * v; ++i) logits.push_back(static_cast<float>(random.integer(-4, 4)) / 2);
  }

  PickParams params() {
    PickParams p;
    p.batch = batch, p.vocab = vocab, p.logits = logits.data(), p.token = token.data(), p.best = best.data();
    return p;
  }

  int32_t wanted(int64_t row) const {
    return picked({logits.begin() + row * vocab, logits.begin() + (row + 1) * vocab});
  }

  void check() {
    run_cuda(params(), nullptr);
    for (int64_t row = 0; row < batch; ++row) {
      const int32_t id = wanted(row);
      ASSERT_EQ(token[static_cast<size_t>(row)], id) << vocab;
      const float logit = logits[static_cast<size_t>(row * vocab + id)];
      ASSERT_EQ(__builtin_memcmp(&best[static_cast<size_t>(row)], &logit, sizeof logit), 0);
    }
  }
};

TEST(CudaPick, TakesTheLowestIdOfTheLargestLogit) {
  Random random(170);
  for (const int64_t vocab : {1, 2, 31, 32, 33, 511, 512, 513, 4095, 4096, 4097, 9000}) {
    Case(random, vocab > 1000 ? 1 : 3, vocab).check();
  }
  for (int round = 0; round < rounds(20); ++round) {
    Case(random, random.integer(0, 4), random.integer(1, 1500)).check();
  }
}

TEST(CudaPick, OrdersWhatIsNoUsualNumber) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::nanf("");
  Random random(171);
  for (const auto& special : std::vector<std::vector<float>>{{-0.0F, 0.0F},
                                                             {0.0F, -0.0F},
                                                             {kInf, kNan},
                                                             {-kNan, kInf},
                                                             {-kInf, -kInf},
                                                             {kNan, kNan},
                                                             {1e-45F}}) {
    Case c(random, 1, 700);
    for (float& logit : c.logits) logit = special[0] == -kInf ? -kInf : -1.0F;
    for (size_t i = 0; i < special.size(); ++i) c.logits[300 + 170 * i] = special[i];
    c.check();
  }
}

TEST(CudaPick, RefusesWhatItCannotTake) {
  Random random(172);
  Case c(random, 2, 9);
  const auto refused = [&](auto change) {
    PickParams p = c.params();
    change(p);
    EXPECT_THROW(run_cuda(p, nullptr), InvalidArgument);
  };
  refused([](auto& p) { p.batch = -1; });
  refused([](auto& p) { p.vocab = 0; });
  refused([](auto& p) { p.logits = nullptr; });
  refused([](auto& p) { p.token = nullptr; });
  refused([](auto& p) { p.best = nullptr; });
}

#ifndef VLKV_PTX
TEST(CudaPick, HasACEntryPoint) {
  Random random(173);
  Case c(random, 2, 40);
  vlkv_pick_params given{2, 40, c.logits.data(), c.token.data(), c.best.data()};
  char text[200];
  ASSERT_EQ(vlkv_pick_cuda(&given, nullptr, text, sizeof text), VLKV_OK) << text;
  EXPECT_EQ(c.token[1], c.wanted(1));
  given.vocab = 0;
  EXPECT_EQ(vlkv_pick_cuda(&given, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(text), "[pick] vocab is 0, not in [1, 2147483646]");
  EXPECT_EQ(vlkv_pick_cuda(nullptr, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
}
#endif

}  // namespace
}  // namespace vlkv::test::pick
