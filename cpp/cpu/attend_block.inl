// Attend's inner loops for several rows. Lanes are queries, so that maxima and sums over keys need no step
// across lanes; an element of a key or value is broadcast to all of them. Included inside an instruction
// set's namespace.

constexpr int kBlockVectors = kAccumulators >= 12 ? 3 : 2;

// acc[n][v] += x[v] * y[n * stride]
template <int NV, int N>
VLKV_INLINE void add_products(const float* x, const float* y, int64_t stride, F (&acc)[N][NV]) {
  F own[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) own[v] = in_register(load<F>(x + v * kLanes));
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
    const F other = in_register(splat(y[n * stride]));
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[n][v] += own[v] * other;
  }
}

// The logits of N keys, the first of which is the tile's key i; updates the maximum.
template <int NV, int N, bool kMasked>
VLKV_INLINE void block_logits(const AttendQueries& queries, const AttendKeys& tile, int i, F (&most)[NV]) {
  const auto* query = static_cast<const float*>(queries.query);
  const float* key = static_cast<const float*>(tile.key) + i * tile.stride;
  F acc[N][NV] = {};
#pragma GCC unroll 2
  for (int d = 0; d < queries.head_dim; ++d) {
    add_products<NV, N>(query + d * NV * kLanes, key + d, tile.stride, acc);
  }
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      F logit = acc[n][v];
      if constexpr (kMasked) {
        const I seen = load<I>(queries.seen + v * kLanes);
        logit = seen > splat(tile.first + i + n) ? logit : splat(-__builtin_inff());
      }
      most[v] = larger(logit, most[v]);
      store(queries.weight + ((i + n) * NV + v) * kLanes, logit);
    }
  }
}

// state[2 + d..2 + d + N) = state * factor + sum over keys of weight * value.
template <int NV, int N>
VLKV_INLINE void block_values(const AttendQueries& queries, const AttendKeys& tile, int d, int keys,
                              const F (&factor)[NV]) {
  const float* value = static_cast<const float*>(tile.value) + d;
  float* state = queries.state + (2 + d) * NV * kLanes;
  F acc[N][NV];
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[n][v] = load<F>(state + (n * NV + v) * kLanes) * factor[v];
  }
#pragma GCC unroll 2
  for (int i = 0; i < keys; ++i) {
    add_products<NV, N>(queries.weight + i * NV * kLanes, value + i * tile.stride, 1, acc);
  }
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(state + (n * NV + v) * kLanes, acc[n][v]);
  }
}

template <int NV, bool kMasked>
static __attribute__((noinline)) void block_tile(const AttendQueries& queries, const AttendKeys& tile,
                                                 int keys) {
  constexpr int kTogether = kAccumulators / NV;
  float* state = queries.state;
  F before[NV], most[NV], factor[NV], origin[NV], sum[NV];
  for (int v = 0; v < NV; ++v) before[v] = most[v] = load<F>(state + v * kLanes);
  int i = 0;
  for (; i + kTogether <= keys; i += kTogether) block_logits<NV, kTogether, kMasked>(queries, tile, i, most);
  for (; i < keys; ++i) block_logits<NV, 1, kMasked>(queries, tile, i, most);
  for (int v = 0; v < NV; ++v) {
    // where all logits are -infinity, all weights are 0
    origin[v] = most[v] == -__builtin_inff() ? F{} : most[v];
    factor[v] = exp2_below(before[v] - origin[v]);
    sum[v] = F{};
  }
  for (i = 0; i < keys; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* at = queries.weight + (i * NV + v) * kLanes;
      const F weight = exp2_below(load<F>(at) - origin[v]);
      store(at, weight);
      sum[v] += weight;
    }
  }
  for (int v = 0; v < NV; ++v) {
    store(state + v * kLanes, most[v]);
    float* total = state + (NV + v) * kLanes;
    store(total, load<F>(total) * factor[v] + sum[v]);
  }
  int d = 0;
  for (; d + kTogether <= queries.head_dim; d += kTogether) {
    block_values<NV, kTogether>(queries, tile, d, keys, factor);
  }
  for (; d < queries.head_dim; ++d) block_values<NV, 1>(queries, tile, d, keys, factor);
}

template <int NV>
static void attend_vectors(const AttendQueries& queries, const AttendKeys& tile) {
  const int seen = queries.most - tile.first, keys = seen < tile.keys ? seen : tile.keys;
  if (queries.least >= tile.first + keys) {
    block_tile<NV, false>(queries, tile, keys);
  } else {
    block_tile<NV, true>(queries, tile, keys);
  }
}

static void attend_block(const AttendQueries& queries, const AttendKeys& tile) {
  if (queries.vectors == 1) return attend_vectors<1>(queries, tile);
  if (queries.vectors == 2) return attend_vectors<2>(queries, tile);
  if constexpr (kBlockVectors == 3) attend_vectors<3>(queries, tile);
}
