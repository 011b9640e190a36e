// Score's inner loops. Lanes are query rows, so that maxima and sums over keys need no step across lanes; a
// key's elements are read in memory order and broadcast. Included inside an instruction set's namespace.

// Prefetches the cache line of base[element], which may be outside the array: nothing is read.
template <int kLocality>
VLKV_INLINE void fetch(const float* base, int64_t element) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(base) + static_cast<uint64_t>(element) * sizeof(float);
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, kLocality);
}

// One step along D: every key's element times every vector of rows. The smaller of the two sets stays in
// registers.
template <int NV, int NK>
VLKV_INLINE void multiply(const float* query, const float* key, int64_t key_stride, F (&acc)[NK][NV]) {
  if constexpr (NK < NV) {
    F k[NK];
#pragma GCC unroll 16
    for (int n = 0; n < NK; ++n) k[n] = splat(key[n * key_stride]);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const F q = in_register(load<F>(query + v * kLanes));
#pragma GCC unroll 16
      for (int n = 0; n < NK; ++n) acc[n][v] += q * k[n];
    }
  } else {
    F q[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) q[v] = in_register(load<F>(query + v * kLanes));
#pragma GCC unroll 16
    for (int n = 0; n < NK; ++n) {
      const float k = key[n * key_stride];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[n][v] += q[v] * k;
    }
  }
}

// Computes q.k of NV vectors of rows with NK keys in NK * NV accumulators, writes them, and updates each
// row's maximum. A tile's keys exceed the first-level cache, so the next NK keys are prefetched meanwhile.
template <int NV, int NK, bool kMasked>
VLKV_INLINE void micro(const float* query, const float* key, int64_t key_stride, int dim, const I* position,
                       int32_t first_key, float* weight, F* maximum) {
  F acc[NK][NV] = {};
  int d = 0;
  for (; d + kLineFloats <= dim; d += kLineFloats) {
#pragma GCC unroll 16
    for (int n = 0; n < NK; ++n) fetch<3>(key, (NK + n) * key_stride + d);
#pragma GCC unroll 4
    for (int i = d; i < d + kLineFloats; ++i) {
      multiply<NV, NK>(query + i * NV * kLanes, key + i, key_stride, acc);
    }
  }
  for (; d < dim; ++d) multiply<NV, NK>(query + d * NV * kLanes, key + d, key_stride, acc);
#pragma GCC unroll 16
  for (int n = 0; n < NK; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      F s = acc[n][v];
      if (kMasked) s = position[v] >= first_key + n ? s : splat(-__builtin_inff());
      maximum[v] = larger(s, maximum[v]);
      store(weight + (v * kTileKeys + n) * kLanes, s);
    }
  }
}

// Prefetches a share of the next tile's keys and weights into the second-level cache: the share of NV of the
// block's vectors and of keys [begin, end), so that the load on memory is even.
template <int NV>
VLKV_INLINE void fetch_next(const ScoreBlock& block, const KeyTile& tile, int vector, int begin, int end) {
  const int first = kTileKeys * vector / block.vectors;
  const int rows = kTileKeys * (vector + NV) / block.vectors - first;
  for (int row = first + rows * begin / kTileKeys; row < first + rows * end / kTileKeys; ++row) {
    for (int d = 0; d < block.head_dim; d += kLineFloats) {
      fetch<2>(tile.key, (int64_t{tile.next} * kTileKeys + row) * tile.stride + d);
    }
  }
  const int64_t weights = block.weight_at(tile.index + tile.next, vector) * kLanes;
  for (int at = begin * NV * kLanes; at < end * NV * kLanes; at += kLineFloats) {
    fetch<2>(block.weight, weights + at);
  }
}

template <int NV, bool kMasked>
static __attribute__((noinline)) void weigh_vectors(const ScoreBlock& block, const KeyTile& tile,
                                                    int vector) {
  constexpr int kKeys = kAccumulators / NV;
  const int dim = block.head_dim, keys = tile.keys;
  const int64_t stride = tile.stride;
  const int32_t first_key = tile.index * kTileKeys;
  const float* query = block.query + int64_t{vector} * dim * kLanes;
  const float* key = tile.key;
  float* weight = block.weight + block.weight_at(tile.index, vector) * kLanes;
  float* stats = block.stats + block.stats_at(tile.index, vector) * kLanes;
  I position[NV];
  F maximum[NV];
  for (int v = 0; v < NV; ++v) {
    position[v] = load<I>(block.position + (vector + v) * kLanes);
    maximum[v] = splat(-kLargest);
  }
  int n = 0;
  for (; n + kKeys <= keys; n += kKeys) {
    if (tile.next != 0) fetch_next<NV>(block, tile, vector, n, n + kKeys);
    micro<NV, kKeys, kMasked>(query, key + n * stride, stride, dim, position, first_key + n,
                              weight + n * kLanes, maximum);
  }
  for (; n < keys; ++n) {
    micro<NV, 1, kMasked>(query, key + n * stride, stride, dim, position, first_key + n, weight + n * kLanes,
                          maximum);
  }
  for (int v = 0; v < NV; ++v) {
    float* row = weight + v * kTileKeys * kLanes;
    F sum{};
    for (int j = 0; j < keys; ++j) {
      const F e = exp2_below(load<F>(row + j * kLanes) - maximum[v]);
      store(row + j * kLanes, e);
      sum += e;
    }
    store(stats + v * 2 * kLanes, maximum[v]);
    store(stats + (v * 2 + 1) * kLanes, sum);
  }
}

template <int NV>
static void weigh_group(const ScoreBlock& block, const KeyTile& tile, int vector) {
  const int32_t first_key = tile.index * kTileKeys;
  bool all = true, any = false;
  for (int v = vector; v < vector + NV; ++v) {
    all = all && block.first[v] >= first_key + tile.keys - 1;
    any = any || block.last[v] >= first_key;
  }
  if (all) {
    weigh_vectors<NV, false>(block, tile, vector);
  } else if (any) {
    weigh_vectors<NV, true>(block, tile, vector);
  } else {
    float* stats = block.stats + block.stats_at(tile.index, vector) * kLanes;
    for (int v = 0; v < NV; ++v) {
      store(stats + v * 2 * kLanes, splat(-kLargest));
      store(stats + (v * 2 + 1) * kLanes, F{});
    }
  }
}

static void weigh(const ScoreBlock& block, const KeyTile& tile) {
  int vector = 0;
  for (; vector + kGroup <= block.vectors; vector += kGroup) weigh_group<kGroup>(block, tile, vector);
  const int left = block.vectors - vector;
  if (left == 1) weigh_group<1>(block, tile, vector);
  if constexpr (kGroup > 2) {
    if (left == 2) weigh_group<2>(block, tile, vector);
    if (left == 3) weigh_group<3>(block, tile, vector);
  }
}

static void combine(const ScoreBlock& block, int tiles) {
  for (int v = 0; v < block.vectors; ++v) {
    F maximum = splat(-kLargest), sum{};
    for (int t = 0; t < tiles; ++t) {
      maximum = larger(load<F>(block.stats + block.stats_at(t, v) * kLanes), maximum);
    }
    for (int t = 0; t < tiles; ++t) {
      const float* at = block.stats + block.stats_at(t, v) * kLanes;
      sum += load<F>(at + kLanes) * exp2(load<F>(at) - maximum);
    }
    store(block.valid + v * kLanes, load<I>(block.valid + v * kLanes) & (sum > 0.0F));
    store(block.whole + v * 2 * kLanes, maximum);
    store(block.whole + (v * 2 + 1) * kLanes, 1.0F / sum);
  }
}

// Adds NV vectors' weights to the columns; returns the number under the threshold among valid, unmasked
// pairs.
template <int NV>
VLKV_INLINE int64_t add_vectors(const ScoreBlock& block, int tile, int vector, int keys, float p,
                                float* columns) {
  const int32_t last_key = tile * kTileKeys + keys - 1;
  const float* weight = block.weight + block.weight_at(tile, vector) * kLanes;
  const float* stats = block.stats + block.stats_at(tile, vector) * kLanes;
  F factor[NV], threshold[NV];  // what turns a weight into A; the weight of p times the row's largest A
  I valid[NV], under[NV] = {};
  for (int v = 0; v < NV; ++v) {
    const float* whole = block.whole + (vector + v) * 2 * kLanes;
    const F difference = load<F>(stats + v * 2 * kLanes) - load<F>(whole);
    valid[v] = load<I>(block.valid + (vector + v) * kLanes);
    factor[v] = (F)((I)(exp2(difference) * load<F>(whole + kLanes)) & valid[v]);
    threshold[v] = p * exp2(-difference);
  }
  for (int j = 0; j < keys; ++j) {
    F sum = load<F>(columns + j * kLanes);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const F e = load<F>(weight + (v * kTileKeys + j) * kLanes);
      sum += (F)((I)e & valid[v]) * factor[v];
      under[v] += e < threshold[v];
    }
    store(columns + j * kLanes, sum);
  }
  int64_t total = 0;
  for (int v = 0; v < NV; ++v) {
    // Masked pairs have weight 0 and were counted: they are the last keys of the tile.
    I masked = last_key - load<I>(block.position + (vector + v) * kLanes);
    masked = masked > 0 ? masked : I{};
    masked = masked < keys ? masked : splat(keys);
    const I counted = (-under[v] - masked) & valid[v];
    for (int i = 0; i < kLanes; ++i) total += counted[i];
  }
  return total;
}

static int64_t add_columns(const ScoreBlock& block, int tile, int keys, float threshold, float* score) {
  alignas(64) float columns[kTileKeys * kLanes] = {};
  const int32_t first_key = tile * kTileKeys;
  int64_t under = 0;
  for (int vector = 0; vector < block.vectors;) {
    int reaching = 0;
    while (reaching < 4 && vector + reaching < block.vectors && block.last[vector + reaching] >= first_key) {
      ++reaching;
    }
    if (reaching == 4) {
      under += add_vectors<4>(block, tile, vector, keys, threshold, columns);
      vector += 4;
    } else {
      if (reaching > 0) under += add_vectors<1>(block, tile, vector, keys, threshold, columns);
      ++vector;
    }
  }
  for (int j = 0; j < keys; ++j) score[j] += sum_lanes(load<F>(columns + j * kLanes));
  return under;
}
