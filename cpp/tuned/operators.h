// What a tuned library gives to the Python extension: a table of functions, found by the name vlkv_operators.
#pragma once

#include <cstdint>

#include "vlkv/evict.h"
#include "vlkv/score.h"

namespace vlkv {

// A library whose version or sizes differ was compiled from other sources, and is refused.
struct Operators {
  static constexpr uint32_t kVersion = 1;

  uint32_t version = kVersion;
  uint32_t score_bytes = sizeof(ScoreParams);
  uint32_t evict_bytes = sizeof(EvictParams);
  void (*score)(const ScoreParams&) = nullptr;
  void (*evict)(const EvictParams&) = nullptr;
};

}  // namespace vlkv
