// The definitions of Pick and Draw, with sorted tokens and float64 weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "vlkv/draw.h"

namespace vlkv::test {

// Pick's token: the lowest id of the largest logit; a NaN is larger than every number.
inline int32_t picked(const std::vector<float>& logits) {
  int32_t best = 0;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    if (std::isnan(logits[static_cast<size_t>(id)])) return id;
    if (logits[static_cast<size_t>(id)] > logits[static_cast<size_t>(best)]) best = id;
  }
  return best;
}

// The ids that may be drawn, from the least likely on; of equal logits the lower id is the less likely one.
inline std::vector<int32_t> allowed(const std::vector<float>& logits, const std::vector<double>& weight,
                                    const DrawSettings& s) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto logit = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logit(a) < logit(b); });
  if (s.top_k >= 1 && s.top_k < static_cast<double>(ids.size())) {
    const float lowest = logit(ids[ids.size() - static_cast<size_t>(s.top_k)]);
    ids.erase(ids.begin(),
              std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return logit(id) >= lowest; }));
  }
  if (s.top_p < 1) {
    double total = 0, sum = 0;
    for (const int32_t id : ids) total += weight[static_cast<size_t>(id)];
    const auto first = std::find_if(ids.begin(), ids.end() - 1, [&](int32_t id) {
      return (sum += weight[static_cast<size_t>(id)]) > (1 - s.top_p) * total;
    });
    ids.erase(ids.begin(), first);
  }
  return ids;
}

// Draw's token.
inline int32_t drawn(const std::vector<float>& logits, const DrawSettings& s) {
  const int32_t best = picked(logits);
  const double largest = logits[static_cast<size_t>(best)];
  if (!(s.temperature > 0) || !std::isfinite(largest)) return best;
  std::vector<double> weight;
  for (const float logit : logits) weight.push_back(std::exp((logit - largest) / s.temperature));
  std::vector<int32_t> ids = allowed(logits, weight, s);
  std::sort(ids.begin(), ids.end());
  double total = 0, sum = 0;
  for (const int32_t id : ids) total += weight[static_cast<size_t>(id)];
  for (const int32_t id : ids) {
    if ((sum += weight[static_cast<size_t>(id)]) > s.uniform * total) return id;
  }
  return ids.back();
}

}  // namespace vlkv::test
