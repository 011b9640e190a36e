// Many rows in fixed point times columns of codes: lanes are rows, so that all lanes share four codes.
// Included by kernels_vnni.cpp.

constexpr int kTileVectors = 2, kTileColumns = 12;  // the tile of the AVX-512 kernels
constexpr int kColumnsAtOnce = 6;
constexpr int kTileRows = kTileVectors * kLanes;
constexpr int kSteps = kDepthGroup / 4;  // of a span: a lane of 32 bits has four digits

static void pack_row(const void* row, int64_t depth, WeightFormat format, int lane, void* to) {
  const FixedRow layout = fixed_row(depth);
  const auto* high = static_cast<const int8_t*>(row);
  const auto* scales = reinterpret_cast<const float*>(high + 2 * layout.digits);
  const int64_t spans = whole_groups(depth) / kDepthGroup;
  for (int64_t i = 0; i < spans; ++i) {
    int8_t* span = static_cast<int8_t*>(to) + i * kFixedSpanBytes * kTileRows + 4 * lane;
    for (int part = 0; part < 2; ++part) {
      const int8_t* digits = high + part * layout.digits;
      const int64_t at = first_half(format, i), after = second_half(format, i);
      for (int step = 0; step < kSteps / 2; ++step) {
        int8_t* first = span + int64_t{part * kSteps + step} * 4 * kTileRows;
        __builtin_memcpy(first, digits + at + 4 * step, 4);
        __builtin_memcpy(first + int64_t{kSteps} / 2 * 4 * kTileRows, digits + after + 4 * step, 4);
      }
    }
    __builtin_memcpy(span + int64_t{2} * kSteps * 4 * kTileRows, scales + i, 4);
    __builtin_memcpy(span + int64_t{2 * kSteps + 1} * 4 * kTileRows, scales + layout.spans + i, 4);
  }
}

static void unpack(const Weights& weights, int64_t column, int64_t first, int count, uint8_t* codes,
                   float* scales, float* minimums) {
  const int64_t at = column * weights.blocks * weights.block + first;
  const auto* from = static_cast<const uint8_t*>(weights.weight);
  if (weights.format == WeightFormat::kInt8) {
    __builtin_memcpy(codes, from + at, static_cast<size_t>(count));
  } else {
    const __m128i nibble = _mm_set1_epi8(15);
    for (int k = 0; k < count; k += kDepthGroup) {
      const __m128i pairs = load<__m128i>(from + (at + k) / 2);
      store(codes + k, _mm_and_si128(pairs, nibble));
      store(codes + k + kLanes, _mm_and_si128(_mm_srli_epi16(pairs, 4), nibble));
    }
  }
  const int spans = count / kDepthGroup;
  for (int i = 0; i < spans; i += kSpansAtOnce) {
    const int some = spans - i < kSpansAtOnce ? spans - i : kSpansAtOnce;
    __m512 scale, minimum;
    load_scales(weights, column, SpanBlocks(weights, first / kDepthGroup + i, some), scale, minimum);
    _mm512_mask_storeu_ps(scales + i, first_lanes(some), scale);
    _mm512_mask_storeu_ps(minimums + i, first_lanes(some), minimum);
  }
}

// _mm512_dpbusd_epi32, with which GCC 12 copies and spills the sums of a tile.
VLKV_INLINE void add_products(__m512i& sum, __m512i codes, __m512i digits) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(digits));
}

// Columns [first, first + kColumnsAtOnce) of a tile, whose sums stay in registers beside those of the digits.
VLKV_INLINE void multiply_columns(const FixedTile& tile, int first) {
  __m512 sums[kColumnsAtOnce][kTileVectors];
#pragma GCC unroll 6
  for (int c = 0; c < kColumnsAtOnce; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      sums[c][v] = _mm512_loadu_ps(tile.sums + (first + c) * tile.sums_stride + v * kLanes);
    }
  }
  const auto* rows = static_cast<const int8_t*>(tile.rows);
  const uint8_t* codes = tile.codes + first * kPanelCodes;
  for (int span = 0; span < tile.spans; ++span) {
    __m512i acc[kColumnsAtOnce][kTileVectors];
#pragma GCC unroll 6
    for (int c = 0; c < kColumnsAtOnce; ++c) acc[c][0] = acc[c][1] = _mm512_setzero_si512();
    for (int part = 0; part < 2; ++part) {
#pragma GCC unroll 6
      for (int c = 0; c < kColumnsAtOnce; ++c) {
#pragma GCC unroll 2
        for (int v = 0; v < kTileVectors; ++v) acc[c][v] = _mm512_slli_epi32(acc[c][v], 8);
      }
#pragma GCC unroll 2
      for (int step = 0; step < kSteps; ++step) {
        const __m512i low = _mm512_loadu_si512(rows), high = _mm512_loadu_si512(rows + 4 * kLanes);
        rows += 4 * kTileRows;
#pragma GCC unroll 6
        for (int c = 0; c < kColumnsAtOnce; ++c) {
          int32_t four;
          __builtin_memcpy(&four, codes + c * kPanelCodes + 4 * step, sizeof(four));
          const __m512i code = _mm512_set1_epi32(four);
          add_products(acc[c][0], code, low);
          add_products(acc[c][1], code, high);
        }
      }
    }
    codes += kDepthGroup;
    const auto* factors = reinterpret_cast<const float*>(rows);
    rows += 2 * 4 * kTileRows;
#pragma GCC unroll 6
    for (int c = 0; c < kColumnsAtOnce; ++c) {
      const int at = (first + c) * kPanelSpans + span;
      const __m512 scale = _mm512_set1_ps(tile.scales[at]), minimum = _mm512_set1_ps(tile.minimums[at]);
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) {
        const __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(factors + v * kLanes));
        const __m512 total = _mm512_loadu_ps(factors + kTileRows + v * kLanes);
        sums[c][v] = _mm512_fmadd_ps(minimum, total, sums[c][v]);
        sums[c][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[c][v]), factor, sums[c][v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int c = 0; c < kColumnsAtOnce; ++c) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      _mm512_storeu_ps(tile.sums + (first + c) * tile.sums_stride + v * kLanes, sums[c][v]);
    }
  }
}

static void multiply_tile(const FixedTile& tile) {
  for (int c = 0; c < kTileColumns; c += kColumnsAtOnce) multiply_columns(tile, c);
}
