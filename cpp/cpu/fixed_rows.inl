// Rows in 16-bit fixed point. Included by kernels_vnni.cpp.
//
// A span of 32 numbers x is scale * (256 * high + low), with digits of 8 bits: scale = max|x| / 32512, high
// in [-127, 127], low in [-128, 127]. So |x - scale * q| is at most scale / 2 and float32's rounding: 2^-15.9
// of the span's largest, or 2^-105 where that is under 2^-89.

constexpr float kLargestFixed = 32512.0F;  // 127 * 256
// Scales are at least this, which is 2^-40 of the largest number of a row in fixed point, or less.
constexpr float kSmallestScale = 0x1p-104F;
constexpr int32_t kInfinityBits = 0x7f800000;

// The bytes of a span's even (or first) sixteen numbers, and those of the others, within a row's digits. With
// codes of 4 bits a vector of bytes has 64 even and 64 odd codes, of four spans.
VLKV_INLINE int64_t first_half(WeightFormat format, int64_t span) {
  return format == WeightFormat::kInt4 ? span / 4 * 128 + span % 4 * 16 : span * kDepthGroup;
}
VLKV_INLINE int64_t second_half(WeightFormat format, int64_t span) {
  return first_half(format, span) + (format == WeightFormat::kInt4 ? 64 : 16);
}

VLKV_INLINE __m512i magnitude_bits(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// Writes the digits of sixteen numbers; returns the numbers they stand for.
VLKV_INLINE __m512i write_digits(__m512 x, __m512 inverse, int8_t* high, int8_t* low) {
  const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
  const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(upper));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(q));  // modulo 256
  return q;
}

static bool round_row(const float* from, int64_t depth, WeightFormat format, void* to) {
  const FixedRow row = fixed_row(depth);
  auto* high = static_cast<int8_t*>(to);
  int8_t* low = high + row.digits;
  auto* scales = reinterpret_cast<float*>(high + 2 * row.digits);
  float* sums = scales + row.spans;
  const int64_t spans = whole_groups(depth) / kDepthGroup;
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < spans; ++i) {
    __m512 first = _mm512_loadu_ps(from + i * kDepthGroup);
    __m512 second = _mm512_loadu_ps(from + i * kDepthGroup + kLanes);
    const __m512i most = _mm512_max_epu32(magnitude_bits(first), magnitude_bits(second));
    largest = _mm512_max_epu32(largest, most);
    int32_t bits = _mm512_reduce_max_epi32(most);
    if (bits >= kInfinityBits) first = second = _mm512_setzero_ps(), bits = 0;  // the row is not used
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude = magnitude > kSmallestScale * kLargestFixed ? magnitude : kSmallestScale * kLargestFixed;
    const __m512 inverse = _mm512_set1_ps(kLargestFixed / magnitude);
    const int64_t at = first_half(format, i), after = second_half(format, i);
    const __m512i q = _mm512_add_epi32(write_digits(first, inverse, high + at, low + at),
                                       write_digits(second, inverse, high + after, low + after));
    scales[i] = magnitude / kLargestFixed;
    sums[i] = scales[i] * static_cast<float>(_mm512_reduce_add_epi32(q));
  }
  for (int64_t i = spans; i < row.spans; ++i) scales[i] = sums[i] = 0;
  // Infinities and NaN have the largest bits.
  const int32_t bits = _mm512_reduce_max_epi32(largest);
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, sizeof(magnitude));
  return bits == 0 || (magnitude >= 0x1p-64F && magnitude <= 0x1p64F);
}
