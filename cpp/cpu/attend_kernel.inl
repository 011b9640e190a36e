// Attend's inner loops. Lanes are elements of a head: keys and values are read in memory order, once for up
// to four query heads. Included inside an instruction set's namespace.

// Keys per tile, whose weights are stored between the two products. The tile's keys, then its values, stay in
// the first-level cache for the query heads after the first four.
constexpr int kAttendKeys = 64;

// Prefetch distance in floats: 12 KiB, which is beyond the end of a 4 KiB page, where the hardware prefetcher
// stops.
constexpr int kAttendAhead = 3072;

// Partial sums of four vectors' lanes, in the order of the vectors, in every 128 bits of the result; the sums
// over all 128-bit parts are complete.
VLKV_INLINE F sum_by_quads(const F (&v)[4]) {
#if VLKV_LANES == 4
#define VLKV_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define VLKV_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define VLKV_LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define VLKV_HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#elif VLKV_LANES == 8
#define VLKV_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define VLKV_HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define VLKV_LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define VLKV_HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define VLKV_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define VLKV_HIGH(a, b) \
  __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define VLKV_LOW_PAIRS(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define VLKV_HIGH_PAIRS(a, b) \
  __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#endif
  const F x = VLKV_LOW(v[0], v[1]) + VLKV_HIGH(v[0], v[1]), y = VLKV_LOW(v[2], v[3]) + VLKV_HIGH(v[2], v[3]);
  return VLKV_LOW_PAIRS(x, y) + VLKV_HIGH_PAIRS(x, y);
#undef VLKV_LOW
#undef VLKV_HIGH
#undef VLKV_LOW_PAIRS
#undef VLKV_HIGH_PAIRS
}

// sums[n] = the sum of v[n]'s lanes.
template <int N>
VLKV_INLINE void sum_each(const F (&v)[N], float (&sums)[(N + 3) / 4 * 4]) {
#pragma GCC unroll 8
  for (int n = 0; n < N; n += 4) {
    F four[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) four[i] = n + i < N ? v[n + i] : F{};
    float quads[kLanes];
    store(quads, sum_by_quads(four));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      float sum = quads[i];
#pragma GCC unroll 4
      for (int quad = 4; quad < kLanes; quad += 4) sum += quads[quad + i];
      sums[n + i] = sum;
    }
  }
}

// weight[h][i..i+NK) = query[h].key for NK keys, which are read once for NH heads.
template <int NH, int NK>
VLKV_INLINE void attend_logits(const float* query, const float* key, int dim, int i,
                               float (&weight)[NH][kAttendKeys]) {
  const int whole = dim / kLanes * kLanes;
  const float* k = key + int64_t{i} * dim;
  F acc[NK * NH] = {};
  for (int d = 0; d < whole; d += kLanes) {
    F q[NH];
#pragma GCC unroll 4
    for (int h = 0; h < NH; ++h) q[h] = in_register(load<F>(query + h * dim + d));
#pragma GCC unroll 8
    for (int n = 0; n < NK; ++n) {
      const F element = in_register(load<F>(k + n * dim + d));
      if (d % kLineFloats == 0) fetch<3>(k, n * dim + d + kAttendAhead);
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
      for (int d = whole; d < dim; ++d) logit += query[h * dim + d] * k[n * dim + d];
      weight[h][i + n] = logit;
    }
  }
}

// state[h][2 + d..] = state * factor[h] + sum over keys of weight[h] * value, NV vectors of d at a time.
template <int NH, int NV>
VLKV_INLINE void attend_values(const float* value, int keys, int dim, int d,
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
    const float* from = value + int64_t{i} * dim + d;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const F element = in_register(load<F>(from + v * kLanes));
      if (v * kLanes % kLineFloats == 0) fetch<3>(from, v * kLanes + kAttendAhead);
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

// Updates the state of NH query heads with one tile of keys.
template <int NH>
VLKV_INLINE void attend_tile(const AttendPart& part, int head, int64_t first, int keys) {
  const int dim = part.head_dim;
  const float* query = part.query + int64_t{head} * dim;
  float* state = part.state + int64_t{head} * (2 + dim);
  const float* key = part.key + first * dim;
  float weight[NH][kAttendKeys], factor[NH];
  constexpr int kKeys = kAccumulators >= 4 * NH ? 4 : kAccumulators >= 2 * NH ? 2 : 1;
  int i = 0;
  for (; i + kKeys <= keys; i += kKeys) attend_logits<NH, kKeys>(query, key, dim, i, weight);
  for (; i < keys; ++i) attend_logits<NH, 1>(query, key, dim, i, weight);
  const int vectors = (keys + kLanes - 1) / kLanes;
#pragma GCC unroll 4
  for (int h = 0; h < NH; ++h) {
    float* own = state + h * (2 + dim);
    for (i = keys; i < kAttendKeys && i % kLanes != 0; ++i) weight[h][i] = -__builtin_inff();
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
  const float* value = part.value + first * dim;
  constexpr int kVectors = kAccumulators / NH >= 4 ? 4 : kAccumulators / NH >= 2 ? 2 : 1;
  int d = 0;
  for (; d + kVectors * kLanes <= dim; d += kVectors * kLanes) {
    attend_values<NH, kVectors>(value, keys, dim, d, weight, factor, state);
  }
  for (; d + kLanes <= dim; d += kLanes) attend_values<NH, 1>(value, keys, dim, d, weight, factor, state);
  for (; d < dim; ++d) {
    for (int h = 0; h < NH; ++h) {
      float sum = state[h * (2 + dim) + 2 + d] * factor[h];
      for (int i = 0; i < keys; ++i) sum += weight[h][i] * value[int64_t{i} * dim + d];
      state[h * (2 + dim) + 2 + d] = sum;
    }
  }
}

static void attend(const AttendPart& part) {
  for (int h = 0; h < part.heads; ++h) {
    float* state = part.state + int64_t{h} * (2 + part.head_dim);
    state[0] = -__builtin_inff();
    for (int i = 1; i < 2 + part.head_dim; ++i) state[i] = 0;
  }
  for (int64_t first = 0; first < part.keys; first += kAttendKeys) {
    const int keys = part.keys - first < kAttendKeys ? static_cast<int>(part.keys - first) : kAttendKeys;
    int head = 0;
    for (; head + 4 <= part.heads; head += 4) attend_tile<4>(part, head, first, keys);
    switch (part.heads - head) {
      case 3:
        attend_tile<3>(part, head, first, keys);
        break;
      case 2:
        attend_tile<2>(part, head, first, keys);
        break;
      case 1:
        attend_tile<1>(part, head, first, keys);
        break;
      default:
        break;
    }
  }
}
