// The interface of Linear's kernels, which each instruction set implements.
#pragma once

#include <cstdint>

#include "vlkv/linear.h"

namespace vlkv::cpu {

// Weights are read, and inputs arranged, this many at a time: the two codes of a byte of kInt4 lie 16 apart.
inline constexpr int kDepthGroup = 32;

// The size of a panel of widened weights: 256 floats or 512 bfloat16 of each column.
inline constexpr int kPanelFloats = 256;
inline constexpr int kPanelHalves = 512;

constexpr int64_t whole_groups(int64_t depth) {
  return (depth + kDepthGroup - 1) / kDepthGroup * kDepthGroup;
}

// Whether a group's even numbers lie before its odd ones, because these formats are read two in a byte or
// word.
constexpr bool evens_first(WeightFormat format) {
  return format == WeightFormat::kInt4 || format == WeightFormat::kBFloat16;
}

// A product's weights.
struct Weights {
  WeightFormat format = WeightFormat::kFloat32;
  DType scale_type = DType::kFloat32;
  int64_t depth = 0, block = 0, blocks = 0;
  const void* weight = nullptr;
  const void* scales = nullptr;
  const uint8_t* zeros = nullptr;
  const uint16_t* minimums = nullptr;
};

// Few rows times consecutive columns.
struct FewRows {
  Weights weights;
  int64_t column = 0;  // the first
  int columns = 0, rows = 0;
  const float* input = nullptr;  // [rows][stride], arranged
  int64_t stride = 0;
  const float* bias = nullptr;
  const float* residual = nullptr;  // [rows][result_stride], as the result
  float* result = nullptr;          // [rows][result_stride], whole rows
  int64_t result_stride = 0;
};

// A tile of rows times a tile of columns.
struct ManyRows {
  const void* input = nullptr;   // [depth][tile_rows]; bfloat16: [depth / 2][tile_rows][2]
  const void* weight = nullptr;  // [tile_columns][kPanelFloats]; bfloat16: [tile_columns][kPanelHalves]
  int depth = 0;
  float* sums = nullptr;  // [tile_columns][sums_stride], added to
  int64_t sums_stride = 0;
  const float* scales = nullptr;  // bfloat16: of `block` weights of a column [tile_columns][scales_stride]
  int block = 0, scales_stride = 0;
};

struct LinearKernels {
  int tile_rows, tile_columns;

  // Arranges the input as the kernels read it, see evens_first; zeros past `depth`.
  void (*arrange)(const float* from, int64_t depth, WeightFormat format, float* to);

  // LinearParams' norm and gated, of one row. `to` may be `from`.
  void (*normalize)(const float* from, const float* norm, float epsilon, int64_t depth, float* to);
  void (*gate)(const float* from, const float* gated, int64_t depth, float* to);

  void (*multiply_few)(const FewRows& part);

  // Widens weights [first, first + count) of a column to float32, in the order of `arrange`; zeros past
  // depth. Codes are multiplied by their scale.
  void (*widen)(const Weights& weights, int64_t column, int64_t first, int count, float* to);

  // The same, rounded to bfloat16. Codes are widened without their scale, which is exact, unless they have
  // minimums. The remaining factors are written to `scales`, one for each `step` weights.
  void (*widen_half)(const Weights& weights, int64_t column, int64_t first, int count, uint16_t* to,
                     float* scales, int step);

  // Transposes the first `count` numbers of `rows` arranged rows [rows][stride] to [count][tile_rows]; other
  // rows are zeros.
  void (*pack)(const float* from, int64_t stride, int rows, int64_t count, float* to);
  // The same, to [count / 2][tile_rows][2] in bfloat16.
  void (*pack_half)(const float* from, int64_t stride, int rows, int64_t count, uint16_t* to);

  void (*multiply_many)(const ManyRows& tile);
  void (*multiply_half)(const ManyRows& tile);  // null if the processor has no such products

  // Transposes sums [columns][sums_stride] + bias + residual to result [rows][result_stride]; the residual
  // has the result's stride.
  void (*finish)(const float* sums, int64_t sums_stride, int rows, int columns, const float* bias,
                 const float* residual, float* result, int64_t result_stride);
};

}  // namespace vlkv::cpu
