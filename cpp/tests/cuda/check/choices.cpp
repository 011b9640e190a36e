// Pick and Draw on the device against their definitions.
#include <cmath>

#include "../next_token.h"
#include "check.h"

namespace vlkv::check {
namespace {

// Logits of a batch, which are whole numbers or not, and the tokens that a kernel chose.
struct Choice {
  int64_t batch, vocab;
  std::vector<float> logits;
  Device logits_there, token_there, best_there;

  Choice(Random& random, int64_t b, int64_t v)
      : batch(b),
        vocab(v),
        logits(drawn_logits(random, b * v)),
        logits_there(logits),
        token_there(static_cast<size_t>(b) * sizeof(int32_t)),
        best_there(static_cast<size_t>(b) * sizeof(float)) {}

  static std::vector<float> drawn_logits(Random& random, int64_t count) {
    const bool whole = random.integer(0, 1) == 1;
    std::vector<float> all;
    for (int64_t i = 0; i < count; ++i) {
      const float logit = 4 * random.normal();
      all.push_back(whole ? std::round(logit) : logit);
    }
    if (random.integer(0, 3) == 0) {
      all[static_cast<size_t>(random.integer(0, count - 1))] = random.integer(0, 1) == 0 ? NAN : INFINITY;
    }
    return all;
  }

  template <class Params>
  void run(Params p) const {
    p.batch = batch, p.vocab = vocab;
    p.logits = logits_there.as<float>(), p.token = token_there.as<int32_t>(), p.best = best_there.as<float>();
    run_cuda(p, nullptr);
    require(cudaDeviceSynchronize());
  }

  // wanted(logits of a prompt, its number): the token.
  template <class Wanted>
  void check(const char* what, Wanted wanted) const {
    const auto token = token_there.read<int32_t>();
    const auto best = best_there.read<float>();
    for (int64_t b = 0; b < batch; ++b) {
      const std::vector<float> row(logits.begin() + b * vocab, logits.begin() + (b + 1) * vocab);
      const int32_t right = wanted(row, static_cast<size_t>(b)), is = token[static_cast<size_t>(b)];
      require(is == right, std::string(what) + " " + std::to_string(is) + ", not " + std::to_string(right));
      const float largest = row[static_cast<size_t>(test::picked(row))];
      require(std::memcmp(&best[static_cast<size_t>(b)], &largest, sizeof largest) == 0,
              std::string(what) + ": the largest logit differs");
    }
  }
};

}  // namespace

void check_pick(Random& random) {
  const Choice choice(random, random.integer(1, 4), random.integer(1, 9000));
  choice.run(PickParams{});
  choice.check("picked", [](const auto& row, size_t) { return test::picked(row); });
}

void check_draw(Random& random) {
  const Choice choice(random, random.integer(1, 4), random.integer(1, 9000));
  std::vector<DrawSettings> settings;
  for (int64_t b = 0; b < choice.batch; ++b) {
    const double temperature = random.integer(0, 4) == 0 ? 0 : 0.1 + 2 * random.uniform();
    const double top_k = static_cast<double>(random.integer(0, 1) == 0 ? 0 : random.integer(1, choice.vocab));
    settings.push_back(
        {temperature, top_k, random.integer(0, 1) == 0 ? 1 : random.uniform(), random.uniform()});
  }
  const Device settings_there(settings);
  DrawParams p;
  p.settings = settings_there.as<DrawSettings>();
  choice.run(p);
  choice.check("drawn", [&](const auto& row, size_t b) { return test::drawn(row, settings[b]); });
}

}  // namespace vlkv::check
