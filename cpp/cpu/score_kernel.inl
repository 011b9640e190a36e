// Score's inner loops. Lanes are query rows, so that maxima and sums over keys need no step across lanes, and
// a key is read as it lies: one element broadcast against the rows. Included inside an instruction set's
// namespace.

// q.k of NV vectors of rows with NK keys, NK * NV accumulators; writes them and returns each row's maximum.
template <int NV, int NK, bool kMasked>
VLKV_INLINE void micro(const float* query, const float* key, int64_t key_stride, int dim, const I* position,
                       int32_t first_key, float* weight, F* maximum) {
  F acc[NK][NV] = {};
  const int64_t next_vector = int64_t{dim} * kLanes;
  for (int d = 0; d < dim; ++d) {
    F q[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) q[v] = load<F>(query + v * next_vector + int64_t{d} * kLanes);
#pragma GCC unroll 16
    for (int n = 0; n < NK; ++n) {
      const float k = key[n * key_stride + d];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[n][v] += q[v] * k;
    }
  }
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

// Asks for rows of the next tile. Each turn of each vector asks for its share, so that memory is busy evenly;
// past the end of the keys nothing is read.
VLKV_INLINE void fetch_rows(const float* key, int64_t key_stride, int dim, int begin, int end) {
  for (int64_t row = begin; row < end; ++row) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(key) +
                         static_cast<uint64_t>(row) * static_cast<uint64_t>(key_stride) * sizeof(float);
    for (uintptr_t line = 0; line < static_cast<unsigned>(dim) * sizeof(float); line += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(at + line), 0, 2);
    }
  }
}

template <int NV, bool kMasked>
VLKV_INLINE void weigh_vectors(const ScoreBlock& block, int tile, int vector, const float* key,
                               int64_t key_stride, int keys) {
  constexpr int kKeys = kAccumulators / NV;
  const int dim = block.head_dim;
  const float* query = block.query + int64_t{vector} * dim * kLanes;
  float* weight = block.weight + (int64_t{tile} * block.vectors + vector) * kTileKeys * kLanes;
  float* stats = block.stats + (int64_t{tile} * block.vectors + vector) * 2 * kLanes;
  I position[NV];
  F maximum[NV];
  for (int v = 0; v < NV; ++v) {
    position[v] = load<I>(block.position + (vector + v) * kLanes);
    maximum[v] = splat(-kLargest);
  }
  int n = 0;
  for (; n + kKeys <= keys; n += kKeys) {
    const int turn = vector * kTileKeys + n * NV;
    fetch_rows(key, key_stride, dim, kTileKeys + turn / block.vectors,
               kTileKeys + (turn + kKeys * NV) / block.vectors);
    micro<NV, kKeys, kMasked>(query, key + n * key_stride, key_stride, dim, position, tile * kTileKeys + n,
                              weight + n * kLanes, maximum);
  }
  for (; n < keys; ++n) {
    micro<NV, 1, kMasked>(query, key + n * key_stride, key_stride, dim, position, tile * kTileKeys + n,
                          weight + n * kLanes, maximum);
  }
  for (int v = 0; v < NV; ++v) {
    float* row = weight + v * kTileKeys * kLanes;
    F sum{};
    for (int j = 0; j < keys; ++j) {
      const F e = exp2(load<F>(row + j * kLanes) - maximum[v]);
      store(row + j * kLanes, e);
      sum += e;
    }
    store(stats + v * 2 * kLanes, maximum[v]);
    store(stats + (v * 2 + 1) * kLanes, sum);
  }
}

template <int NV>
VLKV_INLINE void weigh_some(const ScoreBlock& block, int tile, int vector, const float* key,
                            int64_t key_stride, int keys) {
  const int32_t first_key = tile * kTileKeys;
  bool all = true, any = false;
  for (int v = vector; v < vector + NV; ++v) {
    all = all && block.first[v] >= first_key + keys - 1;
    any = any || block.last[v] >= first_key;
  }
  if (all) {
    weigh_vectors<NV, false>(block, tile, vector, key, key_stride, keys);
  } else if (any) {
    weigh_vectors<NV, true>(block, tile, vector, key, key_stride, keys);
  } else {
    float* stats = block.stats + (int64_t{tile} * block.vectors + vector) * 2 * kLanes;
    for (int v = 0; v < NV; ++v) {
      store(stats + v * 2 * kLanes, splat(-kLargest));
      store(stats + (v * 2 + 1) * kLanes, F{});
    }
  }
}

static void weigh(const ScoreBlock& block, int tile, const float* key, int64_t key_stride, int keys) {
  int vector = 0;
  for (; vector + 2 <= block.vectors; vector += 2) weigh_some<2>(block, tile, vector, key, key_stride, keys);
  if (vector < block.vectors) weigh_some<1>(block, tile, vector, key, key_stride, keys);
}

static void combine(const ScoreBlock& block, int tiles, float threshold) {
  const int64_t next_tile = int64_t{block.vectors} * 2 * kLanes;
  for (int v = 0; v < block.vectors; ++v) {
    float* stats = block.stats + v * 2 * kLanes;
    F maximum = splat(-kLargest), sum{};
    for (int t = 0; t < tiles; ++t) maximum = larger(load<F>(stats + t * next_tile), maximum);
    for (int t = 0; t < tiles; ++t) {
      const float* at = stats + t * next_tile;
      sum += load<F>(at + kLanes) * exp2(load<F>(at) - maximum);
    }
    const I valid = load<I>(block.valid + v * kLanes) & (sum > 0.0F);
    store(block.valid + v * kLanes, valid);
    const F inverse = 1.0F / sum;
    for (int t = 0; t < tiles; ++t) {
      float* at = stats + t * next_tile;
      const F difference = load<F>(at) - maximum;
      store(at, (F)((I)(exp2(difference) * inverse) & valid));
      store(at + kLanes, threshold * exp2(-difference));
    }
  }
}

// Adds NV vectors' weights to the columns; returns the number under the threshold among valid, unmasked
// pairs.
template <int NV>
VLKV_INLINE int64_t add_vectors(const ScoreBlock& block, int tile, int vector, int keys, float* columns) {
  const int32_t last_key = tile * kTileKeys + keys - 1;
  const int64_t at = int64_t{tile} * block.vectors + vector;
  const float* weight = block.weight + at * kTileKeys * kLanes;
  const float* stats = block.stats + at * 2 * kLanes;
  F factor[NV], threshold[NV];
  I valid[NV], under[NV] = {};
  for (int v = 0; v < NV; ++v) {
    factor[v] = load<F>(stats + v * 2 * kLanes);
    threshold[v] = load<F>(stats + (v * 2 + 1) * kLanes);
    valid[v] = load<I>(block.valid + (vector + v) * kLanes);
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

static int64_t add_columns(const ScoreBlock& block, int tile, int keys, float* score) {
  alignas(64) float columns[kTileKeys * kLanes] = {};
  const int32_t first_key = tile * kTileKeys;
  int64_t under = 0;
  int vector = 0;
  while (vector < block.vectors) {
    if (block.last[vector] < first_key) {
      ++vector;
    } else if (vector + 1 < block.vectors && block.last[vector + 1] >= first_key) {
      under += add_vectors<2>(block, tile, vector, keys, columns);
      vector += 2;
    } else {
      under += add_vectors<1>(block, tile, vector, keys, columns);
      ++vector;
    }
  }
  for (int j = 0; j < keys; ++j) score[j] += sum_lanes(load<F>(columns + j * kLanes));
  return under;
}
