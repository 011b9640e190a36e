// float16 and bfloat16 to float32 and back. Included after vector.inl, inside the namespace of an instruction
// set.

VLKV_INLINE F from_bfloat16(H h) { return (F)(__builtin_convertvector(h, U) << 16); }

VLKV_INLINE H to_bfloat16(F v) {
  const U bits = (U)v;
  const U rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const U quiet = (bits >> 16) | 0x40U;
  return __builtin_convertvector(v != v ? quiet : rounded, H);
}

#if defined(__F16C__)

VLKV_INLINE F from_float16(H h) {
  F v;
  for (int i = 0; i < kLanes; i += 8) {
    const __m256 part = _mm256_cvtph_ps(load<__m128i>(reinterpret_cast<const char*>(&h) + i * 2));
    __builtin_memcpy(reinterpret_cast<char*>(&v) + i * 4, &part, 32);
  }
  return v;
}

VLKV_INLINE H to_float16(F v) {
  H h;
  for (int i = 0; i < kLanes; i += 8) {
    const __m256 part = load<__m256>(reinterpret_cast<const char*>(&v) + i * 4);
    const __m128i half = _mm256_cvtps_ph(part, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(reinterpret_cast<char*>(&h) + i * 2, &half, 16);
  }
  return h;
}

#else

// Exponent and mantissa are shifted together; the product with 2^112 corrects the bias and is exact for
// denormals.
VLKV_INLINE F from_float16(H h) {
  const U u = __builtin_convertvector(h, U);
  const U sign = (u & 0x8000U) << 16;
  const U magnitude = (u & 0x7fffU) << 13;
  const U scaled = (U)((F)magnitude * 5.192296858534828e33F);
  const U special = magnitude | 0x7f800000U;
  return (F)(sign | ((u & 0x7c00U) == 0x7c00U ? special : scaled));
}

// Adding a power of two whose last place equals the half's last place rounds the mantissa to nearest even.
VLKV_INLINE H to_float16(F v) {
  const U bits = (U)v;
  const U sign = (bits >> 16) & 0x8000U;
  const U magnitude = bits & 0x7fffffffU;
  const U normal = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  const U denormal = (U)((F)magnitude + 0.5F) - 0x3f000000U;
  U half = magnitude < 0x38800000U ? denormal : normal;
  half = magnitude >= 0x477ff000U ? U{} + 0x7c00U : half;
  half = magnitude > 0x7f800000U ? (U{} + 0x7e00U) : half;
  return __builtin_convertvector(sign | half, H);
}

#endif

VLKV_INLINE float one_float16(uint16_t bits) {
  H half{};
  half[0] = bits;
  return from_float16(half)[0];
}

template <class V, class T, class Convert>
VLKV_INLINE void convert_all(const T* from, auto* to, int64_t count, Convert convert) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, convert(load<V>(from + i)));
  if (i == count) return;
  V rest{};
  const auto bytes = static_cast<size_t>(count - i);
  __builtin_memcpy(&rest, from + i, bytes * sizeof(T));
  const auto converted = convert(rest);
  __builtin_memcpy(to + i, &converted, bytes * sizeof(*to));
}

typedef int8_t Codes __attribute__((vector_size(kLanes)));

VLKV_INLINE float scale_after(const int8_t* codes, int64_t count) {
  float scale;
  __builtin_memcpy(&scale, codes + count, sizeof(scale));
  return scale;
}

// Without this GCC converts bytes one by one.
VLKV_INLINE F from_codes(const int8_t* from) {
#if defined(__AVX512F__) && VLKV_LANES == 16
  return __builtin_convertvector((I)_mm512_maskz_cvtepi8_epi32(__mmask16(-1), load<__m128i>(from)), F);
#elif defined(__AVX2__) && VLKV_LANES == 8
  return __builtin_convertvector(
      (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))), F);
#else
  return __builtin_convertvector(__builtin_convertvector(load<Codes>(from), I), F);
#endif
}

// A row of kInt8.
static void row_to_float(const int8_t* from, float* to, int64_t count) {
  const float scale = scale_after(from, count);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, from_codes(from + i) * scale);
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]) * scale;
}

// Adding 1.5 * 2^23 rounds to nearest even; the sum's low bits are the integer. The clamp matters only where
// the scale is a denormal, which has lost bits.
VLKV_INLINE I rounded_codes(F v, float scale) {
  F y = v / scale;
  y = y > 127.0F ? splat(127.0F) : y;
  y = y < -127.0F ? splat(-127.0F) : y;
  return (I)(y + 12582912.0F) - 0x4b400000;
}

static void row_from_float(const float* from, int8_t* to, int64_t count) {
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = __builtin_fabsf(from[i]);
    finite = finite && magnitude <= kLargest;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = finite ? largest / 127.0F : __builtin_nanf("");
  __builtin_memcpy(to + count, &scale, sizeof(scale));
  if (!(scale > 0.0F)) {
    __builtin_memset(to, 0, static_cast<size_t>(count));
    return;
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = count - i < kLanes ? count - i : kLanes;
    F part{};
    __builtin_memcpy(&part, from + i, static_cast<size_t>(lanes) * sizeof(float));
    const Codes codes = __builtin_convertvector(rounded_codes(part, scale), Codes);
    __builtin_memcpy(to + i, &codes, static_cast<size_t>(lanes));
  }
}

static void to_float(const void* from, DType type, float* to, int64_t count) {
  const auto* bits = static_cast<const uint16_t*>(from);
  if (type == DType::kInt8) {
    row_to_float(static_cast<const int8_t*>(from), to, count);
  } else if (type == DType::kFloat32) {
    __builtin_memcpy(to, from, static_cast<size_t>(count) * 4);
  } else if (type == DType::kFloat16) {
    convert_all<H>(bits, to, count, [](H h) { return from_float16(h); });
  } else {
    convert_all<H>(bits, to, count, [](H h) { return from_bfloat16(h); });
  }
}

static void from_float(const float* from, DType type, void* to, int64_t count) {
  auto* bits = static_cast<uint16_t*>(to);
  if (type == DType::kInt8) {
    row_from_float(from, static_cast<int8_t*>(to), count);
  } else if (type == DType::kFloat32) {
    __builtin_memcpy(to, from, static_cast<size_t>(count) * 4);
  } else if (type == DType::kFloat16) {
    convert_all<F>(from, bits, count, [](F v) { return to_float16(v); });
  } else {
    convert_all<F>(from, bits, count, [](F v) { return to_bfloat16(v); });
  }
}

static void add(const float* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load<F>(to + i) + load<F>(from + i));
  for (; i < count; ++i) to[i] += from[i];
}

static uint32_t sum_words(const uint32_t* from, int64_t count) {
  constexpr int kLoads = 8;  // independent sums, so that no load waits for an addition
  U parts[kLoads] = {};
  int64_t i = 0;
  for (; i + kLoads * kLanes <= count; i += kLoads * kLanes) {
#pragma GCC unroll 8
    for (int n = 0; n < kLoads; ++n) parts[n] += load<U>(from + i + n * kLanes);
  }
  uint32_t sum = 0;
  for (; i < count; ++i) sum += from[i];
  for (int n = 1; n < kLoads; ++n) parts[0] += parts[n];
  for (int lane = 0; lane < kLanes; ++lane) sum += parts[0][lane];
  return sum;
}
