// The rows of Score's input that are not padding.
#pragma once

#include <cstdint>
#include <vector>

#include "vlkv/score.h"

namespace vlkv::cpu {

// An observed row of one prompt, and the last key that it attends to.
struct Row {
  int32_t index, position;
};

// Each prompt's rows. Throws InvalidArgument where a position is outside [-1, slots).
std::vector<std::vector<Row>> read_rows(const ScoreParams& params);

}  // namespace vlkv::cpu
