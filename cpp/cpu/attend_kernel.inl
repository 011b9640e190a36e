// Attend's inner loops. Lanes are elements of a head: keys and values are read in memory order, once for up
// to four query heads. Included inside an instruction set's namespace.

// Prefetch distance in bytes, beyond the end of a 4 KiB page, where the hardware prefetcher stops.
constexpr int kAttendAhead = VLKV_ATTEND_AHEAD;

// A cache's rows by their type. Elements are widened in registers; those of kInt8 are codes, and what they
// give is multiplied by the row's scale.
struct FloatRows {
  using Element = float;
  static constexpr bool kScaled = false;
  VLKV_INLINE F vector(const float* from) { return load<F>(from); }
  VLKV_INLINE float one(const float* from) { return *from; }
};

struct BFloat16Rows {
  using Element = uint16_t;
  static constexpr bool kScaled = false;
  VLKV_INLINE F vector(const uint16_t* from) { return from_bfloat16(load<H>(from)); }
  VLKV_INLINE float one(const uint16_t* from) {
    const uint32_t bits = uint32_t{*from} << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, sizeof(wide));
    return wide;
  }
};

struct Float16Rows {
  using Element = uint16_t;
  static constexpr bool kScaled = false;
  VLKV_INLINE F vector(const uint16_t* from) { return from_float16(load<H>(from)); }
  VLKV_INLINE float one(const uint16_t* from) { return one_float16(*from); }
};

struct Int8Rows {
  using Element = int8_t;
  static constexpr bool kScaled = true;
  VLKV_INLINE F vector(const int8_t* from) { return from_codes(from); }
  VLKV_INLINE float one(const int8_t* from) { return static_cast<float>(*from); }
};

// Elements from one row to the next.
template <class Rows>
VLKV_INLINE int pitch(int dim) {
  return dim + (Rows::kScaled ? 4 : 0);
}

// Prefetches what is kAttendAhead after row[d], once for each cache line. A tile of codes and what is fetched
// ahead of it fit in the first-level cache; those of wider elements would push each other out of it.
template <class Element>
VLKV_INLINE void fetch_ahead(const Element* row, int64_t d) {
  constexpr int kElements = 64 / sizeof(Element);
  if (d % kElements != 0) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(row + d) + kAttendAhead;
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, sizeof(Element) == 1 ? 3 : 2);
}

// weight[h][i..i+NK) = query[h].key for NK keys, which are read once for NH heads.
template <class Rows, int NH, int NK>
VLKV_INLINE void attend_logits(const float* query, const typename Rows::Element* key, int dim, int i,
                               float (&weight)[NH][kAttendKeys]) {
  const int whole = dim / kLanes * kLanes, step = pitch<Rows>(dim);
  const typename Rows::Element* k = key + int64_t{i} * step;
  F acc[NK * NH] = {};
  for (int d = 0; d < whole; d += kLanes) {
    F q[NH];
#pragma GCC unroll 4
    for (int h = 0; h < NH; ++h) q[h] = in_register(load<F>(query + h * dim + d));
#pragma GCC unroll 8
    for (int n = 0; n < NK; ++n) {
      const F element = in_register(Rows::vector(k + n * step + d));
      fetch_ahead(k + n * step, d);
#pragma GCC unroll 4
      for (int h = 0; h < NH; ++h) acc[n * NH + h] += q[h] * element;
    }
  }
  float sums[(NK * NH + 3) / 4 * 4];
  sum_each<NK * NH>(acc, sums);
#pragma GCC unroll 8
  for (int n = 0; n < NK; ++n) {
#pragma GCC unroll 4
    for (int h = 0; h < NH; ++h) {
      float logit = sums[n * NH + h];
      for (int d = whole; d < dim; ++d) logit += query[h * dim + d] * Rows::one(k + n * step + d);
      if constexpr (Rows::kScaled) logit *= scale_after(k + n * step, dim);
      weight[h][i + n] = logit;
    }
  }
}

// state[h][2 + d..] = state * factor[h] + sum over keys of weight[h] * value, NV vectors of d at a time.
template <class Rows, int NH, int NV>
VLKV_INLINE void attend_values(const typename Rows::Element* value, int keys, int dim, int d,
                               const float (&weight)[NH][kAttendKeys], const float (&factor)[NH],
                               float* state) {
  F acc[NH][NV];
#pragma GCC unroll 4
  for (int h = 0; h < NH; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[h][v] = load<F>(state + h * (2 + dim) + 2 + d + v * kLanes) * factor[h];
    }
  }
  for (int i = 0; i < keys; ++i) {
    const typename Rows::Element* from = value + int64_t{i} * pitch<Rows>(dim) + d;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const F element = in_register(Rows::vector(from + v * kLanes));
      fetch_ahead(from, v * kLanes);
#pragma GCC unroll 4
      for (int h = 0; h < NH; ++h) acc[h][v] += element * weight[h][i];
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < NH; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(state + h * (2 + dim) + 2 + d + v * kLanes, acc[h][v]);
  }
}

// Vectors of a tile's weights; the last lanes of the last vector may belong to no key.
constexpr int kAttendVectors = kAttendKeys / kLanes;

// The maximum of a tile's logits and `before`, ignoring NaN.
VLKV_INLINE float attend_maximum(const float (&logit)[kAttendKeys], int vectors, float before) {
  F most = splat(before);
  for (int v = 0; v < kAttendVectors && v < vectors; ++v) most = larger(load<F>(logit + v * kLanes), most);
  float lanes[kLanes], maximum = before;
  store(lanes, most);
  for (int i = 0; i < kLanes; ++i) maximum = lanes[i] > maximum ? lanes[i] : maximum;
  return maximum;
}

// A tile of keys.
template <class Rows>
struct AttendTile {
  const typename Rows::Element* key;
  const typename Rows::Element* value;
  int keys;
};

// Updates the state of NH queries with one tile of keys.
template <class Rows, int NH>
VLKV_INLINE void attend_tile(const AttendPart& part, const AttendTile<Rows>& tile, int head) {
  const int dim = part.head_dim, keys = tile.keys;
  const float* query = part.query + int64_t{head} * dim;
  float* state = part.state + int64_t{head} * (2 + dim);
  float weight[NH][kAttendKeys], factor[NH];
  constexpr int kKeys = kAccumulators >= 4 * NH ? 4 : kAccumulators >= 2 * NH ? 2 : 1;
  int i = 0;
  for (; i + kKeys <= keys; i += kKeys) attend_logits<Rows, NH, kKeys>(query, tile.key, dim, i, weight);
  for (; i < keys; ++i) attend_logits<Rows, NH, 1>(query, tile.key, dim, i, weight);
  const int vectors = (keys + kLanes - 1) / kLanes;
#pragma GCC unroll 4
  for (int h = 0; h < NH; ++h) {
    float* own = state + h * (2 + dim);
    for (i = keys; i < kAttendKeys && i < vectors * kLanes; ++i) weight[h][i] = -__builtin_inff();
    const float maximum = attend_maximum(weight[h], vectors, own[0]);
    const float origin = maximum == -__builtin_inff() ? 0.0F : maximum;  // then all weights are 0
    F sum{};
    for (int v = 0; v < kAttendVectors && v < vectors; ++v) {
      const F w = exp2_below(load<F>(weight[h] + v * kLanes) - origin);
      store(weight[h] + v * kLanes, w);
      sum += w;
    }
    factor[h] = __builtin_exp2f(own[0] - origin);
    own[1] = own[1] * factor[h] + sum_lanes(sum);
    own[0] = maximum;
  }
  const typename Rows::Element* value = tile.value;
  if constexpr (Rows::kScaled) {
    for (i = 0; i < keys; ++i) {
      const float scale = scale_after(value + int64_t{i} * pitch<Rows>(dim), dim);
      for (int h = 0; h < NH; ++h) weight[h][i] *= scale;
    }
  }
  constexpr int kVectors = kAccumulators / NH >= 4 ? 4 : kAccumulators / NH >= 2 ? 2 : 1;
  int d = 0;
  for (; d + kVectors * kLanes <= dim; d += kVectors * kLanes) {
    attend_values<Rows, NH, kVectors>(value, keys, dim, d, weight, factor, state);
  }
  for (; d + kLanes <= dim; d += kLanes) {
    attend_values<Rows, NH, 1>(value, keys, dim, d, weight, factor, state);
  }
  for (; d < dim; ++d) {
    for (int h = 0; h < NH; ++h) {
      float sum = state[h * (2 + dim) + 2 + d] * factor[h];
      for (i = 0; i < keys; ++i) sum += weight[h][i] * Rows::one(value + int64_t{i} * pitch<Rows>(dim) + d);
      state[h * (2 + dim) + 2 + d] = sum;
    }
  }
}

template <class Rows>
VLKV_INLINE void attend_heads(const AttendPart& part, const AttendTile<Rows>& tile) {
  int head = 0;
  for (; head + 4 <= part.heads; head += 4) attend_tile<Rows, 4>(part, tile, head);
  switch (part.heads - head) {
    case 3:
      attend_tile<Rows, 3>(part, tile, head);
      break;
    case 2:
      attend_tile<Rows, 2>(part, tile, head);
      break;
    case 1:
      attend_tile<Rows, 1>(part, tile, head);
      break;
    default:
      break;
  }
}

template <class Rows>
static void attend_rows(const AttendPart& part) {
  using Element = typename Rows::Element;
  for (int first = 0; first < part.keys; first += kAttendKeys) {
    const int keys = part.keys - first < kAttendKeys ? part.keys - first : kAttendKeys;
    const int64_t at = int64_t{first} * pitch<Rows>(part.head_dim);
    attend_heads<Rows>(part, {static_cast<const Element*>(part.key) + at,
                              static_cast<const Element*>(part.value) + at, keys});
  }
}

static void attend(const AttendPart& part) {
  for (int h = 0; h < part.heads; ++h) {
    float* state = part.state + int64_t{h} * (2 + part.head_dim);
    state[0] = -__builtin_inff();
    for (int i = 1; i < 2 + part.head_dim; ++i) state[i] = 0;
  }
  if (part.type == DType::kFloat32) {
    attend_rows<FloatRows>(part);
  } else if (part.type == DType::kBFloat16) {
    attend_rows<BFloat16Rows>(part);
  } else if (part.type == DType::kFloat16) {
    attend_rows<Float16Rows>(part);
  } else {
    attend_rows<Int8Rows>(part);
  }
}
