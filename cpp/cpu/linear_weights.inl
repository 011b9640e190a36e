// Weights of a column as vectors of floats, kDepthGroup at a time in the order of `arrange`. Included inside
// an instruction set's namespace.

#define VLKV_MEMBER inline __attribute__((always_inline))

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr int kGroupVectors = kDepthGroup / kLanes;

// Prefetch distance in bytes: beyond the end of a page, where the hardware prefetcher stops.
constexpr int kLinearAhead = VLKV_LINEAR_AHEAD;

VLKV_INLINE void ask(const void* from) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + kLinearAhead;
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 3);
}

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

VLKV_INLINE float half_at(const uint16_t* from) {
  H half{};
  half[0] = *from;
  return from_float16(half)[0];
}

VLKV_INLINE float scale_at(const Weights& weights, int64_t index) {
  if (weights.scale_type == DType::kFloat32) return static_cast<const float*>(weights.scales)[index];
  return half_at(static_cast<const uint16_t*>(weights.scales) + index);
}

// Columns of float weights.
template <WeightFormat kFormat>
struct FloatColumn {
  static constexpr bool kBlocks = false;
  using Element = std::conditional_t<kFormat == WeightFormat::kFloat32, float, uint16_t>;

  const Element* at;

  FloatColumn(const Weights& weights, int64_t column)
      : at(static_cast<const Element*>(weights.weight) + column * weights.depth) {}
  void enter(int64_t) {}

  static VLKV_MEMBER F wide(const Element* from) {
    if constexpr (kFormat == WeightFormat::kFloat32) {
      return load<F>(from);
    } else if constexpr (kFormat == WeightFormat::kFloat16) {
      return from_float16(load<H>(from));
    } else {
      return from_bfloat16(load<H>(from));
    }
  }

  VLKV_MEMBER void group(int64_t k, F (&w)[kGroupVectors]) const {
    for (int i = 0; i < kDepthGroup; i += 64 / static_cast<int>(sizeof(Element))) ask(at + k + i);
#pragma GCC unroll 4
    for (int v = 0; v < kGroupVectors; ++v) w[v] = wide(at + k + v * kLanes);
  }

  // The last `count` weights of a column.
  VLKV_MEMBER void rest(int64_t k, int count, F (&w)[kGroupVectors]) const {
    Element part[kDepthGroup] = {};
    __builtin_memcpy(part, at + k, static_cast<size_t>(count) * sizeof(Element));
    for (int v = 0; v < kGroupVectors; ++v) w[v] = wide(part + v * kLanes);
  }
};

// Columns of 8-bit codes times their block's scale; with a scale of 1 the codes themselves.
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

  VLKV_MEMBER void set(float x) { scale = splat(x), offset = scale * -128.0F; }
  VLKV_MEMBER void enter(int64_t block) { set(scale_at(weights, first_block + block)); }
  VLKV_MEMBER void enter_codes(int64_t) { set(1.0F); }

  VLKV_MEMBER void group(int64_t k, F (&w)[kGroupVectors]) const {
    if (k % 64 == 0) ask(codes + k);
#pragma GCC unroll 4
    for (int v = 0; v < kGroupVectors; ++v) {
      const F code = __builtin_convertvector(wide_codes(codes + k + v * kLanes), F);
#if defined(__FMA__)
      w[v] = code * scale + offset;  // one instruction, which rounds once: the offset is exact
#else
      w[v] = (code - 128.0F) * scale;
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
struct Int4Column {
  static constexpr bool kBlocks = true;

  const Weights& weights;
  const uint8_t* codes;
  int64_t first_block;
#if VLKV_LOOKS_UP
  F table;  // a block's weight for each code
#else
  F scale, zero, minimum;
#endif

  Int4Column(const Weights& all, int64_t column)
      : weights(all),
        codes(static_cast<const uint8_t*>(all.weight) + column * all.blocks * all.block / 2),
        first_block(column * all.blocks) {}

  VLKV_MEMBER void set(float x, int64_t block) {
    const bool least = weights.minimums != nullptr;
    const float lowest = least ? half_at(weights.minimums + first_block + block) : 0.0F;
    const float coded = weights.zeros != nullptr ? weights.zeros[first_block + block] : 8.0F;
    const float zero_code = least ? 0.0F : coded;
#if VLKV_LOOKS_UP
    const F code = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    table = (code - zero_code) * x + lowest;
#else
    scale = splat(x), zero = splat(zero_code), minimum = splat(lowest);
#endif
  }
  VLKV_MEMBER void enter(int64_t block) { set(scale_at(weights, first_block + block), block); }
  VLKV_MEMBER void enter_codes(int64_t block) { set(1.0F, block); }

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
VLKV_INLINE void with_column(WeightFormat format, Run&& run) {
  switch (format) {
    case WeightFormat::kFloat32:
      return run.template operator()<FloatColumn<WeightFormat::kFloat32>>();
    case WeightFormat::kFloat16:
      return run.template operator()<FloatColumn<WeightFormat::kFloat16>>();
    case WeightFormat::kBFloat16:
      return run.template operator()<FloatColumn<WeightFormat::kBFloat16>>();
    case WeightFormat::kInt8:
      return run.template operator()<Int8Column>();
    case WeightFormat::kInt4:
      return run.template operator()<Int4Column>();
  }
}

#undef VLKV_MEMBER
#undef VLKV_LOOKS_UP
