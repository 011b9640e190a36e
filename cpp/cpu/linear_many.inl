// Linear's inner loops for many rows: lanes are rows, so that all lanes share a weight. Included inside an
// instruction set's namespace.

constexpr int kTileVectors = kAccumulators >= 12 ? 2 : 1;  // of rows
constexpr int kTileRows = kTileVectors * kLanes;
constexpr int kTileColumns = kAccumulators / kTileVectors;

static void multiply_many(const ManyRows& tile) {
  const auto* input = static_cast<const float*>(tile.input);
  const auto* weight = static_cast<const float*>(tile.weight);
  F acc[kTileColumns][kTileVectors];
#pragma GCC unroll 16
  for (int c = 0; c < kTileColumns; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) acc[c][v] = load<F>(tile.sums + c * tile.sums_stride + v * kLanes);
  }
#pragma GCC unroll 2
  for (int k = 0; k < tile.depth; ++k) {
    F x[kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) x[v] = in_register(load<F>(input + k * kTileRows + v * kLanes));
#pragma GCC unroll 16
    for (int c = 0; c < kTileColumns; ++c) {
      const F w = in_register(splat(weight[c * kPanelFloats + k]));
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) acc[c][v] += x[v] * w;
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kTileColumns; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) store(tile.sums + c * tile.sums_stride + v * kLanes, acc[c][v]);
  }
}

// Calls give(k, weights) for each group of weights [first, first + count) of a column.
template <class Column, bool kScaled, class Give>
VLKV_INLINE void each_group(const Weights& weights, int64_t index, int64_t first, int count, Give&& give) {
  Column column(weights, index);
  Scales scales;
  for (int k = 0; k < count; k += kDepthGroup) {
    const int64_t at = first + k;
    if constexpr (Column::kBlocks) {
      if (k == 0 || at % weights.block == 0) {
        const int64_t block = at / weights.block, past = block % kScalesAtOnce;
        if (k == 0 || past == 0) column.fill(block - past, scales);
        if constexpr (kScaled) {
          column.enter(block, scales);
        } else {
          column.enter_codes(block, scales);
        }
      }
    }
    F w[kGroupVectors];
    if (Column::kBlocks || at + kDepthGroup <= weights.depth) {
      column.group(at, w);
    } else {
      column.rest(at, static_cast<int>(weights.depth - at), w);
    }
    give(k, w);
  }
}

static void widen(const Weights& weights, int64_t column, int64_t first, int count, float* to) {
  with_column(weights, [&]<class Column>() {
    each_group<Column, true>(weights, column, first, count, [&](int k, const F(&w)[kGroupVectors]) {
#pragma GCC unroll 4
      for (int v = 0; v < kGroupVectors; ++v) store(to + k + v * kLanes, w[v]);
    });
  });
}

// Codes are widened without their scale, except those with a minimum.
template <class Column, bool kScaled>
VLKV_INLINE void widen_column(const Weights& weights, int64_t column, int64_t first, int count, uint16_t* to,
                              float* scales, int step) {
  each_group<Column, kScaled>(weights, column, first, count, [&](int k, const F(&w)[kGroupVectors]) {
#pragma GCC unroll 4
    for (int v = 0; v < kGroupVectors; ++v) store(to + k + v * kLanes, to_bfloat16(w[v]));
  });
  for (int i = 0; i * step < count; ++i) {
    const int64_t at = first + int64_t{i} * step;
    scales[i] = kScaled ? 1.0F : scale_at(weights, column * weights.blocks + at / weights.block);
  }
}

static void widen_half(const Weights& weights, int64_t column, int64_t first, int count, uint16_t* to,
                       float* scales, int step) {
  with_column(weights, [&]<class Column>() {
    if (!Column::kBlocks || weights.minimums != nullptr) {
      widen_column<Column, true>(weights, column, first, count, to, scales, step);
    } else if constexpr (Column::kBlocks) {
      widen_column<Column, false>(weights, column, first, count, to, scales, step);
    }
  });
}

// One step of a transposition: log2(kLanes) steps that interleave two vectors transpose a square.
VLKV_INLINE void turn(F (&square)[kLanes]) {
#if VLKV_LANES == 8
#define VLKV_LOWER(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define VLKV_UPPER(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define VLKV_LOWER(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define VLKV_UPPER(a, b) \
  __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#endif
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    F next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = VLKV_LOWER(square[i], square[i + kLanes / 2]);
      next[2 * i + 1] = VLKV_UPPER(square[i], square[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i] = next[i];
  }
#undef VLKV_LOWER
#undef VLKV_UPPER
}

// Transposes kLanes numbers of up to kLanes rows: square[i] has the i-th number of each row.
VLKV_INLINE void turned_rows(const float* from, int64_t stride, int rows, F (&square)[kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) square[r] = r < rows ? load<F>(from + r * stride) : F{};
  turn(square);
}

static void pack(const float* from, int64_t stride, int rows, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += kLanes) {
    for (int v = 0; v < kTileVectors; ++v) {
      F square[kLanes];
      turned_rows(from + v * kLanes * stride + k, stride, rows - v * kLanes, square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (k + i) * kTileRows + v * kLanes, square[i]);
    }
  }
}

static void pack_half(const float* from, int64_t stride, int rows, int64_t count, uint16_t* to) {
  for (int64_t k = 0; k < count; k += kLanes) {
    for (int v = 0; v < kTileVectors; ++v) {
      F square[kLanes];
      turned_rows(from + v * kLanes * stride + k, stride, rows - v * kLanes, square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i += 2) {
        const U low = __builtin_convertvector(to_bfloat16(square[i]), U);
        const U high = __builtin_convertvector(to_bfloat16(square[i + 1]), U);
        store(to + ((k + i) / 2 * kTileRows + v * kLanes) * 2, low | high << 16);
      }
    }
  }
}

static void finish(const float* sums, int64_t sums_stride, int rows, int columns, const float* bias,
                   const float* residual, float* result, int64_t result_stride) {
  for (int r = 0; r < rows; r += kLanes) {
    for (int c = 0; c < columns; c += kLanes) {
      const int count = columns - c < kLanes ? columns - c : kLanes;
      F added{}, square[kLanes];
      if (bias != nullptr) added = some(bias + c, count);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load<F>(sums + (c + i) * sums_stride + r);
      turn(square);
      for (int i = 0; i < kLanes && r + i < rows; ++i) {
        F row = square[i] + added;
        if (residual != nullptr) row += some(residual + (r + i) * result_stride + c, count);
        store_some(result + (r + i) * result_stride + c, row, count);
      }
    }
  }
}
