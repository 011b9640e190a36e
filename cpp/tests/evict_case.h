// Evict's cases and their float64 oracle.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "cases.h"
#include "vlkv/evict.h"

namespace vlkv::test::evict {

inline const float kNan = std::numeric_limits<float>::quiet_NaN();
inline const float kInf = std::numeric_limits<float>::infinity();

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
inline std::vector<int64_t> oracle_slots(const Case& c, int64_t b, int64_t h) {
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
inline std::vector<size_t> oracle_places(int64_t length, const std::vector<int64_t>& kept) {
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
inline std::vector<double> oracle_row(const Case& c, const Tensor& from, int64_t b, int64_t h,
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
inline double tolerance(DType type, double count, double magnitude, double value) {
  const double own = type == DType::kFloat32 ? 0x1p-24 : type == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  return count <= 1 ? 0 : own * std::fabs(value) + 0x1p-24 * (count + 1) * magnitude + 0x1p-25;
}

inline void expect_right(Case& c, DType type, const std::string& label) {
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

}  // namespace vlkv::test::evict
