#include "vlkv/score.h"

#include <cmath>

#include "core/check.h"

namespace vlkv {

void validate(const ScoreParams& p) {
  const Check check("score");
  check.range("batch", p.batch, 0, kLargestDim);
  check.range("kv_heads", p.kv_heads, 1, 65536);
  check.range("query_heads", p.query_heads, 1, 65536);
  check.require(p.query_heads % p.kv_heads == 0, "query_heads ", p.query_heads,
                " is not a multiple of kv_heads ", p.kv_heads);
  check.range("rows", p.rows, 0, kLargestDim / p.query_heads);
  check.range("slots", p.slots, 0, kLargestDim);
  check.range("head_dim", p.head_dim, 1, 4096);
  const bool reads = p.batch > 0 && p.rows > 0;
  check.view("query", p.query, reads ? 1 : 0);
  check.cache("key", p.key, reads && p.slots > 0 ? 1 : 0);
  check.require(p.row_position != nullptr || !reads, "row_position is null");
  check.require(p.row_position_type == IndexType::kInt32 || p.row_position_type == IndexType::kInt64,
                "row_position is of type ", static_cast<int>(p.row_position_type),
                ", not int32 (0) or int64 (1)");
  check.require(p.row_position_stride_b >= 0, "row_position has a negative stride ", p.row_position_stride_b);
  check.require(p.score != nullptr || p.batch == 0 || p.slots == 0, "score is null");
  check.require(p.score_stride_b >= 0 && p.score_stride_h >= 0, "score has a negative stride (",
                p.score_stride_b, ", ", p.score_stride_h, ")");
  check.require(p.kv_heads == 1 || p.batch == 0 || p.slots == 0 || p.score_stride_h >= p.slots,
                "score's stride over heads ", p.score_stride_h, " is less than slots ", p.slots);
  check.require(p.batch <= 1 || p.slots == 0 || p.score_stride_b >= p.slots, "score's stride over prompts ",
                p.score_stride_b, " is less than slots ", p.slots);
  check.require(std::isfinite(p.scale) && p.scale >= 0.0F, "scale is ", p.scale,
                ", not a finite number from 0 (0 = 1/sqrt(head_dim))");
  check.require(p.threshold >= 0.0F && p.threshold <= 1.0F, "threshold is ", p.threshold, ", not in [0, 1]");
  check.threads(p.threads);
}

}  // namespace vlkv
