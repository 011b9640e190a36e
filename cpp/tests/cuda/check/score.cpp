// Score on the device against the CPU's kernel, whose oracle is elsewhere.
#include <cmath>
#include <cstdlib>

#include "check.h"

namespace vlkv::check {

void check_score(Random& random) {
  ScoreParams p;
  const DType type = random.type();
  p.batch = random.integer(1, 2), p.kv_heads = random.integer(1, 2);
  p.query_heads = p.kv_heads * random.integer(1, 8);
  p.rows = random.integer(1, 70), p.slots = random.integer(1, 700), p.head_dim = random.integer(1, 18) * 8;
  const auto query = random.cache(type, p.batch * p.query_heads * p.rows * p.head_dim);
  const auto key = random.cache(type, p.batch * p.kv_heads * p.slots * p.head_dim);
  std::vector<int64_t> position;
  for (int64_t i = 0; i < p.batch * p.rows; ++i) position.push_back(random.integer(-1, p.slots - 1));
  p.query = {query.data(), type, p.query_heads * p.rows * p.head_dim, p.rows * p.head_dim, p.head_dim};
  p.key = {key.data(), type, p.kv_heads * p.slots * p.head_dim, p.slots * p.head_dim, p.head_dim};
  p.row_position = position.data(), p.row_position_stride_b = p.rows;
  p.score_stride_b = p.kv_heads * p.slots, p.score_stride_h = p.slots;
  auto score = filled(p.batch * p.kv_heads * p.slots, NAN);
  auto pairs = filled<int64_t>(p.batch, -7), below = pairs;
  p.score = score.data(), p.pairs = pairs.data(), p.below = below.data();
  run_cpu(p);

  const Device query_there(query), key_there(key), position_there(position);
  const Device score_there(score.size() * 4), pairs_there(pairs.size() * 8), below_there(below.size() * 8);
  p.query.data = query_there.as<void>(), p.key.data = key_there.as<void>();
  p.row_position = position_there.as<void>();
  p.score = score_there.as<float>();
  p.pairs = pairs_there.as<int64_t>(), p.below = below_there.as<int64_t>();
  run(p);
  const auto got = score_there.read<float>();
  // Logits of numbers under 6 are off by less than 1e-3 for both: D 144, 36 a product, 147 eps of the
  // magnitudes.
  for (size_t i = 0; i < got.size(); ++i) {
    require(
        std::fabs(got[i] - score[i]) <= 8e-3F * score[i] + 1e-30F,
        "score " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " + std::to_string(score[i]));
  }
  require(pairs_there.read<int64_t>() == pairs, "pairs differ");
  const auto counted = below_there.read<int64_t>();
  for (size_t b = 0; b < counted.size(); ++b) {
    require(std::llabs(counted[b] - below[b]) <= pairs[b] / 500 + 3, "below differs");
  }
}

}  // namespace vlkv::check
