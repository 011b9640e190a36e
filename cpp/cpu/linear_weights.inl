// Weights of a column as vectors of floats, kDepthGroup at a time in the order of `arrange`. Included inside
// an instruction set's namespace.

#define VLKV_MEMBER inline __attribute__((always_inline))

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr int kGroupVectors = kDepthGroup / kLanes;

// Without this GCC converts bytes one by one.
VLKV_INLINE I wide_codes(const uint8_t* from) {
#if defined(__AVX512F__) && VLKV_LANES == 16
  return (I)_mm512_maskz_cvtepu8_epi32(__mmask16(-1), load<__m128i>(from));
#elif defined(__AVX2__) && VLKV_LANES == 8
  return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  return __builtin_convertvector(load<Bytes>(from), I);
#endif
}

// Blocks whose scales are widened at a time.
constexpr int kScalesAtOnce = 16;

// The first `count` numbers; a variable memcpy and a load behind it take longer than the rest of a block.
VLKV_INLINE void wide_numbers(const uint16_t* from, int64_t count, float (&to)[kScalesAtOnce]) {
#if defined(__AVX512F__) && VLKV_LANES == 16
  const auto first = static_cast<__mmask16>(count < kScalesAtOnce ? (1 << count) - 1 : 0xffff);
  store(to, _mm512_maskz_cvtph_ps(__mmask16(-1), _mm256_maskz_loadu_epi16(first, from)));
#else
  if (count >= kScalesAtOnce) {
#pragma GCC unroll 4
    for (int i = 0; i < kScalesAtOnce; i += kLanes) store(to + i, from_float16(load<H>(from + i)));
    return;
  }
  for (int i = 0; i < count; ++i) to[i] = one_float16(from[i]);
#endif
}

VLKV_INLINE void wide_numbers(const float* from, int64_t count, float (&to)[kScalesAtOnce]) {
#if defined(__AVX512F__) && VLKV_LANES == 16
  const auto first = static_cast<__mmask16>(count < kScalesAtOnce ? (1 << count) - 1 : 0xffff);
  store(to, _mm512_maskz_loadu_ps(first, from));
#else
  for (int i = 0; i < kScalesAtOnce && i < count; ++i) to[i] = from[i];
#endif
}

VLKV_INLINE void wide_scales(const Weights& weights, int64_t first, int64_t count,
                             float (&to)[kScalesAtOnce]) {
  if (weights.scale_type == DType::kFloat16) {
    wide_numbers(static_cast<const uint16_t*>(weights.scales) + first, count, to);
  } else {
    wide_numbers(static_cast<const float*>(weights.scales) + first, count, to);
  }
}

// The scales of up to kScalesAtOnce blocks of a column, and their zeros or minimums.
struct Scales {
  float scales[kScalesAtOnce], origins[kScalesAtOnce];
};

VLKV_INLINE float scale_at(const Weights& weights, int64_t index) {
  float found[kScalesAtOnce];
  wide_scales(weights, index, 1, found);
  return found[0];
}

// Columns of float weights.
template <WeightFormat kFormat>
struct FloatColumn {
  static constexpr bool kBlocks = false;
  using Element = std::conditional_t<kFormat == WeightFormat::kFloat32, float, uint16_t>;

  const Element* at;

  FloatColumn(const Weights& weights, int64_t column)
      : at(static_cast<const Element*>(weights.weight) + column * weights.depth) {}
  void fill(int64_t, Scales&) const {}
  void enter(int64_t, const Scales&) {}

  static VLKV_MEMBER F wide(const Element* from) {
    if constexpr (kFormat == WeightFormat::kFloat32) {
      return load<F>(from);
    } else {
      return from_float16(load<H>(from));
    }
  }

  VLKV_MEMBER void group(int64_t k, F (&w)[kGroupVectors]) const {
    for (int i = 0; i < kDepthGroup; i += 64 / static_cast<int>(sizeof(Element)))
      ask<sizeof(Element) == 4>(at + k + i);
    take(at + k, w);
  }

  // A vector of words has an even and an odd number in each, which one operation each widens.
  static VLKV_MEMBER void take(const Element* from, F (&w)[kGroupVectors]) {
    if constexpr (kFormat == WeightFormat::kBFloat16) {
#pragma GCC unroll 4
      for (int v = 0; v < kGroupVectors / 2; ++v) {
        const U pair = load<U>(from + 2 * v * kLanes);
        w[v] = (F)(pair << 16), w[kGroupVectors / 2 + v] = (F)(pair & 0xffff0000U);
      }
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < kGroupVectors; ++v) w[v] = wide(from + v * kLanes);
    }
  }

  // The last `count` weights of a column.
  VLKV_MEMBER void rest(int64_t k, int count, F (&w)[kGroupVectors]) const {
    Element part[kDepthGroup] = {};
    __builtin_memcpy(part, at + k, static_cast<size_t>(count) * sizeof(Element));
    take(part, w);
  }
};

// What stands for zero in codes: the middle one, a code for each block, or nothing, with a minimum for each
// block.
enum class Origin { kMiddle, kZeros, kMinimums };

// Columns of 8-bit codes times their block's scale; with a scale of 1 the codes themselves.
template <Origin kOrigin>
struct Int8Column {
  static constexpr bool kBlocks = true;

  const Weights& weights;
  const uint8_t* codes;
  int64_t first_block;
  F scale, offset;

  Int8Column(const Weights& all, int64_t column)
      : weights(all),
        codes(static_cast<const uint8_t*>(all.weight) + column * all.blocks * all.block),
        first_block(column * all.blocks) {}

  VLKV_MEMBER void fill(int64_t block, Scales& to) const {
    const int64_t first = first_block + block, left = weights.blocks - block;
    ask_scales(weights, first);
    wide_scales(weights, first, left, to.scales);
    if constexpr (kOrigin == Origin::kMinimums) wide_numbers(weights.minimums + first, left, to.origins);
  }
  VLKV_MEMBER void enter(int64_t block, const Scales& from) {
    scale = splat(from.scales[block % kScalesAtOnce]);
    offset = kOrigin == Origin::kMinimums ? splat(from.origins[block % kScalesAtOnce]) : scale * -128.0F;
  }
  VLKV_MEMBER void enter_codes(int64_t, const Scales&) { scale = splat(1.0F), offset = splat(-128.0F); }

  VLKV_MEMBER void group(int64_t k, F (&w)[kGroupVectors]) const {
    if (k % 64 == 0) ask(codes + k);
#pragma GCC unroll 4
    for (int v = 0; v < kGroupVectors; ++v) {
      const F code = __builtin_convertvector(wide_codes(codes + k + v * kLanes), F);
#if defined(__FMA__)
      w[v] = code * scale + offset;  // one instruction, which rounds once: -128 scales are exact
#else
      w[v] = kOrigin == Origin::kMinimums ? code * scale + offset : (code - 128.0F) * scale;
#endif
    }
  }
  VLKV_MEMBER void rest(int64_t, int, F (&)[kGroupVectors]) const {}
};

// Sixteen lanes hold the weights of all codes; GCC's shuffle is one instruction of AVX-512.
#if VLKV_LANES == 16 && !defined(__clang__)
#define VLKV_LOOKS_UP 1
#else
#define VLKV_LOOKS_UP 0
#endif

// Columns of 4-bit codes: a vector of bytes gives one vector of even codes and one of odd codes.
template <Origin kOrigin>
struct Int4Column {
  static constexpr bool kBlocks = true;

  const Weights& weights;
  const uint8_t* codes;
  int64_t first_block;
#if VLKV_LOOKS_UP
  F table{};  // a block's weight for each code
#else
  F scale, zero, minimum;
#endif

  Int4Column(const Weights& all, int64_t column)
      : weights(all),
        codes(static_cast<const uint8_t*>(all.weight) + column * all.blocks * all.block / 2),
        first_block(column * all.blocks) {}

  VLKV_MEMBER void fill(int64_t block, Scales& to) const {
    const int64_t first = first_block + block, left = weights.blocks - block;
    ask_scales(weights, first);
    wide_scales(weights, first, left, to.scales);
    if constexpr (kOrigin == Origin::kMinimums) {
      wide_numbers(weights.minimums + first, left, to.origins);
    } else if constexpr (kOrigin == Origin::kZeros) {
      for (int i = 0; i < kScalesAtOnce && i < left; ++i) to.origins[i] = weights.zeros[first + i];
    }
  }

  VLKV_MEMBER void set(float x, int64_t block, const Scales& from) {
    constexpr bool kLeast = kOrigin == Origin::kMinimums;
    const float origin = kOrigin == Origin::kMiddle ? 8.0F : from.origins[block % kScalesAtOnce];
#if VLKV_LOOKS_UP
    const F code = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    table = kLeast ? code * x + origin : (code - origin) * x;
#else
    scale = splat(x), zero = splat(kLeast ? 0.0F : origin), minimum = splat(kLeast ? origin : 0.0F);
#endif
  }
  VLKV_MEMBER void enter(int64_t block, const Scales& from) {
    set(from.scales[block % kScalesAtOnce], block, from);
  }
  VLKV_MEMBER void enter_codes(int64_t block, const Scales& from) { set(1.0F, block, from); }

  VLKV_MEMBER F weight_of(I code) const {
#if VLKV_LOOKS_UP
    return __builtin_shuffle(table, code);  // by the low four bits
#else
    return (__builtin_convertvector(code & 15, F) - zero) * scale + minimum;
#endif
  }

  VLKV_MEMBER void group(int64_t k, F (&w)[kGroupVectors]) const {
    if (k % 128 == 0) ask(codes + k / 2);
#pragma GCC unroll 4
    for (int v = 0; v < kGroupVectors / 2; ++v) {
      const I pair = wide_codes(codes + k / 2 + v * kLanes);
      w[v] = weight_of(pair), w[kGroupVectors / 2 + v] = weight_of(pair >> 4);
    }
  }
  VLKV_MEMBER void rest(int64_t, int, F (&)[kGroupVectors]) const {}
};

// Calls run<Column>() with the format's column.
template <class Run>
VLKV_INLINE void with_column(const Weights& weights, Run&& run) {
  switch (weights.format) {
    case WeightFormat::kFloat32:
      return run.template operator()<FloatColumn<WeightFormat::kFloat32>>();
    case WeightFormat::kFloat16:
      return run.template operator()<FloatColumn<WeightFormat::kFloat16>>();
    case WeightFormat::kBFloat16:
      return run.template operator()<FloatColumn<WeightFormat::kBFloat16>>();
    case WeightFormat::kInt8:
      if (weights.minimums != nullptr) return run.template operator()<Int8Column<Origin::kMinimums>>();
      return run.template operator()<Int8Column<Origin::kMiddle>>();
    case WeightFormat::kInt4:
      if (weights.minimums != nullptr) return run.template operator()<Int4Column<Origin::kMinimums>>();
      if (weights.zeros != nullptr) return run.template operator()<Int4Column<Origin::kZeros>>();
      return run.template operator()<Int4Column<Origin::kMiddle>>();
  }
}

#undef VLKV_MEMBER
#undef VLKV_LOOKS_UP
