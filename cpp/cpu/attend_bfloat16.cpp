// Attend's inner loops for several rows with products in bfloat16, for processors with AVX512_BF16. They are
// those of attend_block.inl, but an instruction multiplies two numbers of a lane by two others: two elements
// of a query and a key, or the weights of two keys and an element of both values.
#include <immintrin.h>

#include "cpu/kernels.h"

namespace vlkv::cpu {
namespace {

constexpr int kLanes = 16, kAccumulators = 24;
// GCC 12 warns of an undefined vector inside the forms without a mask.
constexpr __mmask16 kAll = 0xffff;
constexpr __mmask32 kAllHalves = 0xffffffff;

__m512i pair_of(const uint16_t* from) {
  int32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return _mm512_set1_epi32(pair);
}

__m512bh halves(const uint16_t* from) { return (__m512bh)_mm512_loadu_si512(from); }

// 2^x for x <= 126, exact for 0, 0 for -infinity; relative error 2^-18, where bfloat16 has 2^-9. NaN stays
// NaN.
__m512 exp2_below(__m512 x) {
  const __m512 f = _mm512_maskz_reduce_ps(kAll, x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 power = _mm512_set1_ps(0.0134266885F);
  for (const float factor : {0.0522424653F, 0.241280213F, 0.693044841F, 1.0F}) {
    power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(factor));
  }
  return _mm512_maskz_scalef_ps(kAll, power, x);
}

// acc[n][v] += x[v] * y[n * stride], of pairs
template <int NV, int N>
__attribute__((always_inline)) inline void add_pairs(const uint16_t* x, const uint16_t* y, int64_t stride,
                                                     __m512 (&acc)[N][NV]) {
  __m512bh own[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) own[v] = halves(x + v * 2 * kLanes);
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
    const auto other = (__m512bh)pair_of(y + n * stride);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[n][v] = _mm512_dpbf16_ps(acc[n][v], own[v], other);
  }
}

// The logits of N keys, the first of which is the tile's key i; updates the maximum.
template <int NV, int N, bool kMasked>
__attribute__((always_inline)) inline void logits(const AttendQueries& queries, const AttendKeys& tile, int i,
                                                  __m512 (&most)[NV]) {
  const auto* query = static_cast<const uint16_t*>(queries.query);
  const uint16_t* key = static_cast<const uint16_t*>(tile.key) + i * tile.stride;
  __m512 acc[N][NV];
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[n][v] = _mm512_setzero_ps();
  }
  for (int d = 0; d < queries.head_dim; d += 2) {
    add_pairs<NV, N>(query + d * NV * kLanes, key + d, tile.stride, acc);
  }
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      __m512 logit = acc[n][v];
      if constexpr (kMasked) {
        const __m512i seen = _mm512_loadu_si512(queries.seen + v * kLanes);
        const __mmask16 hidden = _mm512_cmple_epi32_mask(seen, _mm512_set1_epi32(tile.first + i + n));
        logit = _mm512_mask_mov_ps(logit, hidden, _mm512_set1_ps(-__builtin_inff()));
      }
      most[v] = _mm512_maskz_max_ps(kAll, logit, most[v]);
      _mm512_storeu_ps(queries.weight + ((i + n) * NV + v) * kLanes, logit);
    }
  }
}

// Turns the logits into weights in bfloat16, [(keys + 1) / 2][NV][lanes][2] in the same memory, and adds them
// up.
template <int NV>
__attribute__((always_inline)) inline void weigh(float* weight, int keys, const __m512 (&origin)[NV],
                                                 __m512 (&sum)[NV]) {
  alignas(64) static constexpr uint16_t kByTurns[] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i by_turns = _mm512_load_si512(kByTurns);
  const auto ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (int i = 0; i < keys; i += 2) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const __m512 first =
          exp2_below(_mm512_sub_ps(_mm512_loadu_ps(weight + (i * NV + v) * kLanes), origin[v]));
      __m512 second = _mm512_setzero_ps();
      if (i + 1 < keys) {
        second = exp2_below(_mm512_sub_ps(_mm512_loadu_ps(weight + ((i + 1) * NV + v) * kLanes), origin[v]));
      }
      const auto both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
      const __m512i pairs = _mm512_maskz_permutexvar_epi16(kAllHalves, by_turns, both);
      sum[v] = _mm512_dpbf16_ps(sum[v], (__m512bh)pairs, ones);
      _mm512_storeu_si512(weight + (i / 2 * NV + v) * kLanes, pairs);
    }
  }
}

// state[2 + d..2 + d + N) = state * factor + sum over keys of weight * value.
template <int NV, int N>
__attribute__((always_inline)) inline void values(const AttendQueries& queries, const AttendKeys& tile, int d,
                                                  int keys, const __m512 (&factor)[NV]) {
  const auto* weight = reinterpret_cast<const uint16_t*>(queries.weight);
  const uint16_t* value = static_cast<const uint16_t*>(tile.value) + 2 * d;
  float* state = queries.state + (2 + d) * NV * kLanes;
  __m512 acc[N][NV];
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      acc[n][v] = _mm512_mul_ps(_mm512_loadu_ps(state + (n * NV + v) * kLanes), factor[v]);
    }
  }
  for (int i = 0; i < keys; i += 2) {
    add_pairs<NV, N>(weight + i * NV * kLanes, value + int64_t{i} * queries.head_dim, 2, acc);
  }
#pragma GCC unroll 24
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) _mm512_storeu_ps(state + (n * NV + v) * kLanes, acc[n][v]);
  }
}

template <int NV, bool kMasked>
__attribute__((noinline)) void attend_tile(const AttendQueries& queries, const AttendKeys& tile, int keys) {
  constexpr int kTogether = kAccumulators / NV;
  float* state = queries.state;
  __m512 before[NV], most[NV], factor[NV], origin[NV], sum[NV];
  for (int v = 0; v < NV; ++v) before[v] = most[v] = _mm512_loadu_ps(state + v * kLanes);
  int i = 0;
  for (; i + kTogether <= keys; i += kTogether) logits<NV, kTogether, kMasked>(queries, tile, i, most);
  for (; i < keys; ++i) logits<NV, 1, kMasked>(queries, tile, i, most);
  for (int v = 0; v < NV; ++v) {
    // where all logits are -infinity, all weights are 0
    const __mmask16 none = _mm512_cmp_ps_mask(most[v], _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
    origin[v] = _mm512_mask_mov_ps(most[v], none, _mm512_setzero_ps());
    factor[v] = exp2_below(_mm512_sub_ps(before[v], origin[v]));
    sum[v] = _mm512_mul_ps(_mm512_loadu_ps(state + (NV + v) * kLanes), factor[v]);
  }
  weigh<NV>(queries.weight, keys, origin, sum);
  for (int v = 0; v < NV; ++v) {
    _mm512_storeu_ps(state + v * kLanes, most[v]);
    _mm512_storeu_ps(state + (NV + v) * kLanes, sum[v]);
  }
  int d = 0;
  for (; d + kTogether <= queries.head_dim; d += kTogether) {
    values<NV, kTogether>(queries, tile, d, keys, factor);
  }
  for (; d < queries.head_dim; ++d) values<NV, 1>(queries, tile, d, keys, factor);
}

template <int NV>
void attend_vectors(const AttendQueries& queries, const AttendKeys& tile) {
  const int seen = queries.most - tile.first, keys = seen < tile.keys ? seen : tile.keys;
  if (queries.least >= tile.first + keys) {
    attend_tile<NV, false>(queries, tile, keys);
  } else {
    attend_tile<NV, true>(queries, tile, keys);
  }
}

void attend_half(const AttendQueries& queries, const AttendKeys& tile) {
  if (queries.vectors == 1) return attend_vectors<1>(queries, tile);
  if (queries.vectors == 2) return attend_vectors<2>(queries, tile);
  attend_vectors<3>(queries, tile);
}

void round(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto some = static_cast<__mmask16>(count - i < kLanes ? (1 << (count - i)) - 1 : kAll);
    const auto rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, from + i));
    _mm256_mask_storeu_epi16(to + i, some, rounded);
  }
}

void pair_rows(const uint16_t* from, int rows, int dim, uint16_t* to) {
  for (int i = 0; i < rows; i += 2, from += 2 * dim, to += 2 * dim) {
    for (int d = 0; d < dim; ++d) {
      to[2 * d] = from[d];
      to[2 * d + 1] = i + 1 < rows ? from[dim + d] : uint16_t{0};
    }
  }
}

}  // namespace

extern const HalfAttend kHalfAttend;
const HalfAttend kHalfAttend = {attend_half, round, pair_rows};

}  // namespace vlkv::cpu
