#include "cpu/select.h"

#include <algorithm>
#include <array>
#include <bit>

namespace vlkv::cpu {
namespace {

// Unsigned integers in the order of the scores; 0, which no number maps to, for NaN.
uint32_t ordered(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0F);
  const uint32_t flip = (bits >> 31) != 0 ? 0xffffffffU : 0x80000000U;
  return (bits & 0x7fffffffU) > 0x7f800000U ? 0U : bits ^ flip;
}

constexpr int kDigitBits = 11;
constexpr size_t kBins = size_t{1} << kDigitBits;

// Scores fall into few bins: with four histograms, successive increments of a bin do not wait for each other.
class Histogram {
 public:
  void count(const uint32_t* keys, int64_t n, int shift) {
    for (auto& lane : bins_) lane.fill(0);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
      for (int64_t lane = 0; lane < 4; ++lane)
        ++bins_[static_cast<size_t>(lane)][digit(keys[i + lane], shift)];
    }
    for (; i < n; ++i) ++bins_[0][digit(keys[i], shift)];
  }

  // The bin that holds the `rank`-th highest key (from 1); rank becomes the rank within it.
  uint32_t find(int64_t& rank) const {
    for (size_t bin = kBins; bin-- > 0;) {
      const int64_t here = int64_t{bins_[0][bin]} + bins_[1][bin] + bins_[2][bin] + bins_[3][bin];
      if (rank <= here) return static_cast<uint32_t>(bin);
      rank -= here;
    }
    return 0;
  }

  static uint32_t digit(uint32_t key, int shift) { return (key >> shift) & (kBins - 1); }

 private:
  std::array<std::array<uint32_t, kBins>, 4> bins_;
};

}  // namespace

void select_highest(const float* score, int64_t begin, int64_t end, int64_t count, uint32_t* scratch,
                    int32_t* slots) {
  if (count <= 0) return;
  const int64_t n = end - begin;
  uint32_t* keys = scratch;
  for (int64_t i = 0; i < n; ++i) keys[i] = ordered(score[begin + i]);

  Histogram histogram;
  const uint32_t* candidates = keys;
  int64_t left = n, rank = count;
  uint32_t threshold = 0;
  for (const int shift : {21, 10, 0}) {
    histogram.count(candidates, left, shift);
    const uint32_t bin = histogram.find(rank);
    threshold |= bin << shift;
    uint32_t* narrowed = scratch + n;
    int64_t kept = 0;
    for (int64_t i = 0; i < left; ++i) {
      const uint32_t key = candidates[i];
      narrowed[kept] = key;
      kept += Histogram::digit(key, shift) == bin ? 1 : 0;
    }
    candidates = narrowed;
    left = kept;
  }

  // All slots at or above the threshold, without a branch; then as many of those at the threshold as fit.
  uint32_t* reaching = scratch + n;
  int64_t reached = 0;
  for (int64_t i = 0; i < n; ++i) {
    reaching[reached] = static_cast<uint32_t>(i);
    reached += keys[i] >= threshold ? 1 : 0;
  }
  int64_t written = 0, ties = rank;
  for (int64_t i = 0; i < reached && written < count; ++i) {
    const uint32_t slot = reaching[i];
    const bool tie = keys[slot] == threshold;
    slots[written] = static_cast<int32_t>(begin + slot);
    written += !tie || ties > 0 ? 1 : 0;
    ties -= tie ? 1 : 0;
  }
}

}  // namespace vlkv::cpu
