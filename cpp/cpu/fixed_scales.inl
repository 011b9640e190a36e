// The scales of weights, a number for each span of 32. Included by kernels_vnni.cpp.

constexpr int kSpansAtOnce = kLanes;

VLKV_INLINE __m512 load_halves(const uint16_t* from, __mmask16 some) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, from));
}

VLKV_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count < kLanes ? (1 << count) - 1 : 0xffff);
}

// The blocks of spans [first, first + count), count <= kSpansAtOnce, for every column.
struct SpanBlocks {
  int64_t first;   // block
  __mmask16 some;  // blocks
  bool one_to_one;
  __m512i block;  // of each span, from `first`; unless one_to_one

  inline __attribute__((always_inline)) SpanBlocks(const Weights& weights, int64_t first_span,
                                                   int64_t count) {
    one_to_one = weights.block == kDepthGroup;
    if (one_to_one) {
      first = first_span, some = first_lanes(count), block = _mm512_setzero_si512();
      return;
    }
    const int64_t spans = weights.block / kDepthGroup, past = first_span % spans;
    first = first_span / spans;
    some = first_lanes((past + count - 1) / spans + 1);
    const __m512 index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512 each = (index + (static_cast<float>(past) + 0.5F)) * (1.0F / static_cast<float>(spans));
    block = _mm512_min_epi32(_mm512_cvttps_epi32(each), _mm512_set1_epi32(kLanes - 1));
  }

  inline __attribute__((always_inline)) __m512 spread(__m512 of_blocks) const {
    return one_to_one ? of_blocks : _mm512_permutexvar_ps(block, of_blocks);
  }
};

// weight = code * scale + minimum, whatever stands for zero in the codes. Spans past the last have the scale
// of some block or 0, times rows' scales of 0.
VLKV_INLINE void load_scales(const Weights& weights, int64_t column, const SpanBlocks& blocks, __m512& scale,
                             __m512& minimum) {
  const int64_t at = column * weights.blocks + blocks.first;
  ask_scales(weights, at);
  const __m512 own = weights.scale_type == DType::kFloat16
                         ? load_halves(static_cast<const uint16_t*>(weights.scales) + at, blocks.some)
                         : _mm512_maskz_loadu_ps(blocks.some, static_cast<const float*>(weights.scales) + at);
  __m512 least;
  if (weights.minimums != nullptr) {
    least = load_halves(weights.minimums + at, blocks.some);
  } else if (weights.zeros != nullptr) {
    const __m128i zeros = _mm_maskz_loadu_epi8(blocks.some, weights.zeros + at);
    least = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros)) * own * -1.0F;
  } else {
    least = own * (weights.format == WeightFormat::kInt4 ? -8.0F : -128.0F);
  }
  scale = blocks.spread(own), minimum = blocks.spread(least);
}
