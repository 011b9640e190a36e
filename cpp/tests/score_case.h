// Score's cases and their float64 oracle.
#pragma once

#include <cmath>
#include <limits>

#include "cases.h"
#include "vlkv/score.h"

namespace vlkv::test::score {

inline constexpr double kEps = 1.1920929e-7;

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

inline ScoreParams params(const Case& c, Result& r, int threads = 0) {
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

inline Result run(const Case& c, int threads = 0) {
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
inline Expected oracle(const Case& c) {
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
inline void expect_close(const Case& c, const Result& r, const Expected& e, const std::string& label) {
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

}  // namespace vlkv::test::score
