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

// A row in 16-bit fixed point (fixed_rows.inl): [digits] high bytes, [digits] low ones, a float scale for
// each of the [spans] of kDepthGroup numbers, and as many sums of a span's numbers.
struct FixedRow {
  int64_t digits, spans;
  constexpr int64_t bytes() const { return 2 * digits + 2 * spans * 4; }
};

constexpr FixedRow fixed_row(int64_t depth) {
  return {(depth + 127) / 128 * 128, (whole_groups(depth) / kDepthGroup + 15) / 16 * 16};
}

// Bytes of a span of one row in a tile of rows: the digits, the scale and the sum.
inline constexpr int kFixedSpanBytes = 2 * kDepthGroup + 8;
// A panel of codes: 256 of each column, with a scale and a minimum for each span.
inline constexpr int kPanelCodes = 256, kPanelSpans = kPanelCodes / kDepthGroup;

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
  const void* fixed = nullptr;  // instead: [rows][fixed_stride bytes], each a FixedRow
  int64_t fixed_stride = 0;
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

// A tile of rows in fixed point times a tile of columns of codes.
struct FixedTile {
  const void* rows = nullptr;  // [spans]: high digits, low digits [8][tile_rows][4], scale, sum [tile_rows]
  const uint8_t* codes = nullptr;  // [tile_columns][kPanelCodes], a byte each
  const float* scales = nullptr;   // [tile_columns][kPanelSpans]
  const float* minimums = nullptr;
  int spans = 0;
  float* sums = nullptr;  // [tile_columns][sums_stride], added to
  int64_t sums_stride = 0;
};

// Products of codes with rows in fixed point. Tiles are those of the other kernels.
struct FixedKernels {
  // Rounds an arranged row to a FixedRow. False if the row has to stay in float32: a number is not finite, or
  // the largest is not 0 and not in [2^-64, 2^64].
  bool (*round)(const float* from, int64_t depth, WeightFormat format, void* to);
  void (*multiply_few)(const FewRows& part);
  // Writes a FixedRow to a row `lane` of a tile.
  void (*pack)(const void* row, int64_t depth, WeightFormat format, int lane, void* to);
  // Codes [first, first + count) of a column, in the order of `arrange`, and each span's scale and minimum.
  void (*unpack)(const Weights& weights, int64_t column, int64_t first, int count, uint8_t* codes,
                 float* scales, float* minimums);
  void (*multiply_many)(const FixedTile& tile);
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

  const FixedKernels* fixed;  // null if the processor has no such products
};

}  // namespace vlkv::cpu
