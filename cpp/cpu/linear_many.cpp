#include "cpu/linear_many.h"

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/memory.h"

namespace vlkv::cpu {
namespace {

// Columns and rows that a thread takes at a time, so that a panel of weights and the sums stay in its
// second-level cache. They are whole tiles for every instruction set.
constexpr int64_t kChunkColumns = 96, kChunkRows = 512;
constexpr int64_t kFewChunks = 4;  // of a thread: with fewer, chunks have half of the rows
// Floats between a column's sums and the next one's: columns a power of two apart share few sets of a cache.
constexpr int64_t kColumnGap = 16;

struct Scratch {
  Array<float> sums, scales, minimums, rows;
  int64_t row_floats = 0, digit_bytes = 0;
  Array<char> panel, digits;
};

// What rows and panels are made of.
enum class Kind { kFloats, kHalves, kFixed };

// A thread's working memory, which is kept between calls.
Scratch& scratch() {
  static thread_local Scratch own;
  if (own.panel == nullptr) {
    own.panel = allocate<char>(kChunkColumns * kPanelFloats * 4);
    own.scales = allocate<float>(kChunkColumns * kPanelHalves / kDepthGroup);
    own.minimums = allocate<float>(kChunkColumns * kPanelSpans);
    own.sums = allocate<float>(kChunkColumns * (kChunkRows + kColumnGap));
  }
  return own;
}

struct ManyCall {
  const LinearParams& p;
  const LinearKernels& kernels;
  Kind kind;
  int64_t depth;  // in whole groups
  int64_t chunk_rows, row_chunks;
  const int64_t* first;  // of each product's chunks of columns
  Array<char> packed;    // [row tiles][depth][tile_rows]
  Array<bool> in_float;  // of each row, whether it has to stay in float32; kFixed alone

  bool half() const { return kind == Kind::kHalves; }
  int64_t span_bytes() const {
    return kind == Kind::kFixed ? kFixedSpanBytes : kDepthGroup * (half() ? 2 : 4);
  }
  int64_t stride_of(int64_t tiles) const { return tiles * kernels.tile_rows + kColumnGap; }
  int64_t tile_bytes() const { return depth / kDepthGroup * span_bytes() * kernels.tile_rows; }

  void pack(int64_t tile) const {
    const int64_t row = tile * kernels.tile_rows;
    const int rows = static_cast<int>(std::min<int64_t>(kernels.tile_rows, p.rows - row));
    const float* from = as_they_are(p) ? p.input + row * depth : prepare(row, rows);
    char* to = packed.get() + tile * tile_bytes();
    if (kind == Kind::kFixed) return pack_fixed(row, rows, from, to);
    if (half()) {
      kernels.pack_half(from, depth, rows, depth, reinterpret_cast<uint16_t*>(to));
    } else {
      kernels.pack(from, depth, rows, depth, reinterpret_cast<float*>(to));
    }
  }

  // Rows that have to stay in float32 are zeros in their tile.
  void pack_fixed(int64_t row, int rows, const float* from, char* to) const {
    Scratch& own = scratch();
    const int64_t bytes = fixed_row(p.depth).bytes();
    if (own.digit_bytes < bytes) {
      own.digits = allocate<char>(bytes);
      own.digit_bytes = bytes;
    }
    std::fill_n(to, tile_bytes(), char{0});
    for (int r = 0; r < rows; ++r) {
      const bool fits = kernels.fixed->round(from + r * depth, p.depth, p.format, own.digits.get());
      if (fits) kernels.fixed->pack(own.digits.get(), p.depth, p.format, r, to);
      in_float[static_cast<size_t>(row + r)] = !fits;
    }
  }

  const float* prepare(int64_t row, int rows) const {
    Scratch& own = scratch();
    const int64_t floats = (kernels.tile_rows + 1) * depth;
    if (own.row_floats < floats) {
      own.rows = allocate<float>(floats);
      own.row_floats = floats;
    }
    float* to = own.rows.get() + depth;
    for (int r = 0; r < rows; ++r) prepare_row(p, row + r, own.rows.get(), to + r * depth);
    return to;
  }

  // Weights that share a scale within a panel. Codes with minimums are widened with their scale.
  int step(const Weights& weights) const {
    if (p.block == 0 || weights.minimums != nullptr) return kPanelHalves;
    int step = kDepthGroup;
    while (step < kPanelHalves && p.block % (2 * step) == 0) step *= 2;
    return step;
  }

  void fill(Scratch& own, const Weights& weights, int64_t column, int64_t columns, int64_t first_weight,
            int count, int step) const {
    for (int64_t c = 0; c < columns; ++c) {
      if (half()) {
        kernels.widen_half(weights, column + c, first_weight, count,
                           reinterpret_cast<uint16_t*>(own.panel.get()) + c * kPanelHalves,
                           own.scales.get() + c * (kPanelHalves / step), step);
      } else {
        kernels.widen(weights, column + c, first_weight, count,
                      reinterpret_cast<float*>(own.panel.get()) + c * kPanelFloats);
      }
    }
  }

  void run(int64_t item) const {
    const int64_t chunk = item / row_chunks, first_row = item % row_chunks * chunk_rows;
    int64_t i = 0;
    while (i + 1 < p.count && chunk >= first[i + 1]) ++i;
    const LinearProduct& product = p.products[i];
    const Weights weights = weights_of(p, product);
    const int64_t column = (chunk - first[i]) * kChunkColumns;
    const int64_t columns = std::min(kChunkColumns, product.columns - column);
    const int64_t rows = std::min(chunk_rows, p.rows - first_row);
    const int64_t tiles = (rows + kernels.tile_rows - 1) / kernels.tile_rows;
    const int64_t at = first_row * product.columns + column;
    Scratch& own = scratch();
    const int64_t sums_stride = stride_of(tiles);
    std::fill_n(own.sums.get(), kChunkColumns * sums_stride, 0.0F);
    const char* from = packed.get() + first_row / kernels.tile_rows * tile_bytes();
    if (kind == Kind::kFixed) {
      multiply_fixed(own, weights, column, columns, from, tiles);
    } else {
      multiply(own, weights, column, columns, from, tiles);
    }
    kernels.finish(own.sums.get(), sums_stride, static_cast<int>(rows), static_cast<int>(columns),
                   product.bias == nullptr ? nullptr : product.bias + column,
                   product.residual == nullptr ? nullptr : product.residual + at, product.result + at,
                   product.columns);
  }

  void multiply(Scratch& own, const Weights& weights, int64_t column, int64_t columns, const char* rows,
                int64_t tiles) const {
    const int64_t sums_stride = stride_of(tiles), panel = half() ? kPanelHalves : kPanelFloats;
    const int width = half() ? 2 : 4, share = step(weights);
    ManyRows tile;
    tile.sums_stride = sums_stride, tile.block = share, tile.scales_stride = kPanelHalves / share;
    for (int64_t k = 0; k < depth; k += panel) {
      tile.depth = static_cast<int>(std::min(panel, depth - k));
      fill(own, weights, column, columns, k, tile.depth, share);
      for (int64_t t = 0; t < tiles; ++t) {
        tile.input = rows + t * tile_bytes() + k * kernels.tile_rows * width;
        for (int64_t c = 0; c < columns; c += kernels.tile_columns) {
          tile.weight = own.panel.get() + c * panel * width;
          tile.scales = own.scales.get() + c * tile.scales_stride;
          tile.sums = own.sums.get() + c * sums_stride + t * kernels.tile_rows;
          half() ? kernels.multiply_half(tile) : kernels.multiply_many(tile);
        }
      }
    }
  }

  void multiply_fixed(Scratch& own, const Weights& weights, int64_t column, int64_t columns, const char* rows,
                      int64_t tiles) const {
    auto* codes = reinterpret_cast<uint8_t*>(own.panel.get());
    FixedTile tile;
    tile.sums_stride = stride_of(tiles);
    for (int64_t k = 0; k < depth; k += kPanelCodes) {
      const int count = static_cast<int>(std::min<int64_t>(kPanelCodes, depth - k));
      for (int64_t c = 0; c < columns; ++c) {
        kernels.fixed->unpack(weights, column + c, k, count, codes + c * kPanelCodes,
                              own.scales.get() + c * kPanelSpans, own.minimums.get() + c * kPanelSpans);
      }
      tile.spans = count / kDepthGroup;
      for (int64_t t = 0; t < tiles; ++t) {
        tile.rows = rows + t * tile_bytes() + k / kDepthGroup * kFixedSpanBytes * kernels.tile_rows;
        for (int64_t c = 0; c < columns; c += kernels.tile_columns) {
          tile.codes = codes + c * kPanelCodes;
          tile.scales = own.scales.get() + c * kPanelSpans;
          tile.minimums = own.minimums.get() + c * kPanelSpans;
          tile.sums = own.sums.get() + c * tile.sums_stride + t * kernels.tile_rows;
          kernels.fixed->multiply_many(tile);
        }
      }
    }
  }
};

// Multiplies consecutive rows in float32, as a call of few rows.
void multiply_in_float(const LinearParams& p, int64_t first, int64_t rows, const Loop& loop) {
  const auto products = allocate<LinearProduct>(p.count);
  for (int64_t i = 0; i < p.count; ++i) {
    LinearProduct& own = products[static_cast<size_t>(i)] = p.products[i];
    own.result += first * own.columns;
    if (own.residual != nullptr) own.residual += first * own.columns;
  }
  LinearParams part = p;
  part.rows = rows, part.precision = Precision::kFloat32, part.products = products.get();
  part.input += first * p.depth;
  if (part.gated != nullptr) part.gated += first * p.depth;
  run_cpu(part, loop);
}

}  // namespace

void run_many(const LinearParams& p, const Runner& runner) {
  const LinearKernels& kernels = cpu::kernels().linear;
  const bool half = p.precision == Precision::kBFloat16 && kernels.multiply_half != nullptr;
  const Kind kind = half ? Kind::kHalves : in_fixed16(p) ? Kind::kFixed : Kind::kFloats;
  const auto first = allocate<int64_t>(p.count);
  int64_t chunks = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    first[static_cast<size_t>(i)] = chunks;
    chunks += (p.products[i].columns + kChunkColumns - 1) / kChunkColumns;
  }
  const int64_t tiles = (p.rows + kernels.tile_rows - 1) / kernels.tile_rows;
  const bool few = chunks * (p.rows / kChunkRows) < kFewChunks * resolve_threads(runner.threads);
  const int64_t chunk_rows = few ? kChunkRows / 2 : kChunkRows;
  const int64_t row_chunks = (p.rows + chunk_rows - 1) / chunk_rows;
  ManyCall call{p,           kernels, kind,   whole_groups(p.depth), chunk_rows, row_chunks,
                first.get(), nullptr, nullptr};
  call.packed = allocate<char>(tiles * call.tile_bytes());
  if (kind == Kind::kFixed) call.in_float = allocate<bool>(p.rows);
  runner.run(tiles, true, [&](int64_t tile) { call.pack(tile); });
  runner.run(chunks * row_chunks, true, [&](int64_t item) { call.run(item); });
  for (int64_t row = 0; kind == Kind::kFixed && row < p.rows;) {
    int64_t end = row;
    while (end < p.rows && end - row < LinearParams::kFewRows && call.in_float[static_cast<size_t>(end)])
      ++end;
    if (end > row) multiply_in_float(p, row, end - row, runner.loop);
    row = std::max(end, row + 1);
  }
}

}  // namespace vlkv::cpu
