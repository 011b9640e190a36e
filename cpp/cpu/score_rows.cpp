#include "cpu/score_rows.h"

#include "core/check.h"

namespace vlkv::cpu {
namespace {

int64_t row_position(const ScoreParams& p, int64_t b, int64_t i) {
  const int64_t at = b * p.row_position_stride_b + i;
  return p.row_position_type == IndexType::kInt32 ? int64_t{static_cast<const int32_t*>(p.row_position)[at]}
                                                  : static_cast<const int64_t*>(p.row_position)[at];
}

}  // namespace

std::vector<std::vector<Row>> read_rows(const ScoreParams& p) {
  const Check check("score");
  std::vector<std::vector<Row>> prompts(static_cast<size_t>(p.batch));
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t i = 0; i < p.rows; ++i) {
      const int64_t position = row_position(p, b, i);
      check.require(position >= -1 && position < p.slots, "row_position[", b, ", ", i, "] is ", position,
                    ", not in [-1, ", p.slots, ")");
      if (position < 0) continue;
      prompts[static_cast<size_t>(b)].push_back({static_cast<int32_t>(i), static_cast<int32_t>(position)});
    }
  }
  return prompts;
}

}  // namespace vlkv::cpu
