// Attend's inner loops. Lanes are elements of a head: keys and values are read as they lie, once for up to
// four query heads. Included inside an instruction set's namespace.

// Keys whose weights are held between the two products. Their keys, and then their values, stay in the
// first-level cache for the query heads after the first four.
constexpr int kAttendKeys = 64;

// weight[h][i] = query[h].key[i]; returns each head's largest, NaN left aside.
template <int NH>
VLKV_INLINE void attend_logits(const AttendPart& part, const float* query, const float* key, int keys,
                               float (&weight)[NH][kAttendKeys], float (&maximum)[NH]) {
  const int dim = part.head_dim, whole = dim / kLanes * kLanes;
  for (int i = 0; i < keys; ++i) {
    const float* k = key + int64_t{i} * dim;
    F acc[NH] = {};
    for (int d = 0; d < whole; d += kLanes) {
      const F element = in_register(load<F>(k + d));
#pragma GCC unroll 4
      for (int h = 0; h < NH; ++h) acc[h] += load<F>(query + h * dim + d) * element;
    }
#pragma GCC unroll 4
    for (int h = 0; h < NH; ++h) {
      float logit = sum_lanes(acc[h]);
      for (int d = whole; d < dim; ++d) logit += query[h * dim + d] * k[d];
      weight[h][i] = logit;
      maximum[h] = logit > maximum[h] ? logit : maximum[h];
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

// What is taken from logits: their maximum, unless all are -infinity, whose weights are 0.
VLKV_INLINE float attend_origin(float maximum) { return maximum == -__builtin_inff() ? 0.0F : maximum; }

// A tile of keys for NH query heads, whose state goes on.
template <int NH>
VLKV_INLINE void attend_tile(const AttendPart& part, int head, int64_t first, int keys) {
  const int dim = part.head_dim;
  const float* query = part.query + int64_t{head} * dim;
  float* state = part.state + int64_t{head} * (2 + dim);
  float weight[NH][kAttendKeys], maximum[NH], factor[NH];
#pragma GCC unroll 4
  for (int h = 0; h < NH; ++h) maximum[h] = state[h * (2 + dim)];
  attend_logits<NH>(part, query, part.key + first * dim, keys, weight, maximum);
  const int padded = (keys + kLanes - 1) / kLanes * kLanes;
#pragma GCC unroll 4
  for (int h = 0; h < NH; ++h) {
    float* own = state + h * (2 + dim);
    const float origin = attend_origin(maximum[h]);
    for (int i = keys; i < padded; ++i) weight[h][i] = -__builtin_inff();
    F sum{};
    for (int i = 0; i < padded; i += kLanes) {
      const F w = exp2_below(load<F>(weight[h] + i) - origin);
      store(weight[h] + i, w);
      sum += w;
    }
    factor[h] = __builtin_exp2f(own[0] - origin);
    own[1] = own[1] * factor[h] + sum_lanes(sum);
    own[0] = maximum[h];
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
