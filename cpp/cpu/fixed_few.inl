// Few rows in fixed point times columns of codes, each code read once for up to eight rows. Included by
// kernels_vnni.cpp.
//
// A lane of a 32-bit sum has 256 * high . codes + low . codes of a part of a span, which is exact; it is
// converted to float32 and multiplied by the span's two scales. Minimums are multiplied by the spans' sums.
// The order of a sum does not depend on the numbers of rows and columns.

constexpr int kFewSums = 8;  // registers of sums, one for each pair of a row and a column

// 64 bytes of codes: 64 of 8 bits, or 64 even and 64 odd of 4 bits.
template <WeightFormat kFormat>
struct Codes {
  __m512i low, high;

  inline __attribute__((always_inline)) explicit Codes(__m512i bytes) : low(bytes), high(bytes) {
    if constexpr (kFormat == WeightFormat::kInt4) {
      const __m512i nibble = _mm512_set1_epi8(15);
      low = _mm512_and_si512(bytes, nibble);
      high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
    }
  }

  inline __attribute__((always_inline)) __m512i add(__m512i sum, const int8_t* digits) const {
    sum = _mm512_dpbusd_epi32(sum, low, _mm512_loadu_si512(digits));
    if constexpr (kFormat == WeightFormat::kInt4) {
      sum = _mm512_dpbusd_epi32(sum, high, _mm512_loadu_si512(digits + 64));
    }
    return sum;
  }
};

// A column is read from its first code to its last before the next one is, because processors fetch ahead of
// long streams only.
template <WeightFormat kFormat, int NC, int NR>
static __attribute__((noinline)) void few(const FewRows& part, int64_t column, int row) {
  constexpr int kSpans = kFormat == WeightFormat::kInt4 ? 4 : 2;  // of 64 bytes of codes
  constexpr int kSpanBytes = 64 / kSpans;
  const Weights& weights = part.weights;
  const FixedRow layout = fixed_row(weights.depth);
  const int64_t spans = whole_groups(weights.depth) / kDepthGroup;
  const int64_t column_bytes = weights.blocks * weights.block / kDepthGroup * kSpanBytes;
  const uint8_t* codes = static_cast<const uint8_t*>(weights.weight) + column * column_bytes;
  const auto* rows = static_cast<const int8_t*>(part.fixed) + row * part.fixed_stride;
  F sums[NC * NR];
  for (int c = 0; c < NC; ++c, codes += column_bytes) {
    __m512 acc[NR];
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) acc[r] = _mm512_setzero_ps();
    for (int64_t first = 0; first < spans; first += kSpansAtOnce) {
      const int64_t count = spans - first < kSpansAtOnce ? spans - first : kSpansAtOnce;
      __m512 scale, minimum, scales[NR];
      load_scales(weights, column + c, SpanBlocks(weights, first, count), scale, minimum);
#pragma GCC unroll 8
      for (int r = 0; r < NR; ++r) {
        const int8_t* digits = rows + r * part.fixed_stride;
        const auto* own = reinterpret_cast<const float*>(digits + 2 * layout.digits) + first;
        scales[r] = _mm512_mul_ps(scale, _mm512_loadu_ps(own));
        acc[r] = _mm512_fmadd_ps(minimum, _mm512_loadu_ps(own + layout.spans), acc[r]);
      }
      // The span of each lane.
      __m512i span = kSpans == 4 ? _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
                                 : _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
      const auto add = [&](int64_t i, __m512i bytes) __attribute__((always_inline)) {
        const Codes<kFormat> own(bytes);
#pragma GCC unroll 8
        for (int r = 0; r < NR; ++r) {
          const int8_t* x = rows + (first + i) * kDepthGroup + r * part.fixed_stride;
          __m512i sum = own.add(_mm512_setzero_si512(), x);
          sum = own.add(_mm512_slli_epi32(sum, 8), x + layout.digits);
          const __m512 factor = _mm512_permutexvar_ps(span, scales[r]);
          acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, acc[r]);
        }
        span = _mm512_add_epi32(span, _mm512_set1_epi32(kSpans));
      };
      const uint8_t* from = codes + first * kSpanBytes;
      int64_t i = 0;
      for (; i + kSpans <= count; i += kSpans, from += 64) {
        ask(from);
        add(i, _mm512_loadu_si512(from));
      }
      if (i < count) {
        add(i, _mm512_maskz_loadu_epi8((__mmask64{1} << ((count - i) * kSpanBytes)) - 1, from));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) sums[c * NR + r] = (F)acc[r];
  }
  write_results<NC, NR>(part, column, row, sums);
}

template <WeightFormat kFormat>
static void few_rows(const FewRows& part) {
  constexpr auto kAtOnce = [](int rows) { return kFewSums / rows; };
  divide_part<8>(part, kAtOnce,
                 [&]<int NC, int NR>(int64_t column, int row) { few<kFormat, NC, NR>(part, column, row); });
}

static void multiply_few(const FewRows& part) {
  if (part.weights.format == WeightFormat::kInt4) return few_rows<WeightFormat::kInt4>(part);
  few_rows<WeightFormat::kInt8>(part);
}
