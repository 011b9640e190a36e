// Products in bfloat16, for processors with AVX512_BF16.
#include <immintrin.h>

#include "cpu/linear_kernels.h"

namespace vlkv::cpu {
namespace {

constexpr int kVectors = 2, kColumns = 12, kLanes = 16;  // the tile of the AVX-512 kernels

}  // namespace

void multiply_half_avx512(const ManyRows& tile) {
  const auto* input = static_cast<const uint16_t*>(tile.input);
  const auto* weight = static_cast<const uint16_t*>(tile.weight);
  for (int first = 0; first < tile.depth; first += tile.block) {
    const int end = first + tile.block < tile.depth ? first + tile.block : tile.depth;
    __m512 acc[kColumns][kVectors];
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) acc[c][0] = acc[c][1] = _mm512_setzero_ps();
    for (int k = first; k < end; k += 2) {
      const uint16_t* from = input + int64_t{k} * kVectors * kLanes;
      const auto low = (__m512bh)_mm512_loadu_si512(from);
      const auto high = (__m512bh)_mm512_loadu_si512(from + 2 * kLanes);
#pragma GCC unroll 12
      for (int c = 0; c < kColumns; ++c) {
        int32_t pair;
        __builtin_memcpy(&pair, weight + c * kPanelHalves + k, sizeof(pair));
        const auto both = (__m512bh)_mm512_set1_epi32(pair);
        acc[c][0] = _mm512_dpbf16_ps(acc[c][0], low, both);
        acc[c][1] = _mm512_dpbf16_ps(acc[c][1], high, both);
      }
    }
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) {
      const __m512 scale = _mm512_set1_ps(tile.scales[c * tile.scales_stride + first / tile.block]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        float* sums = tile.sums + c * tile.sums_stride + v * kLanes;
        _mm512_storeu_ps(sums, _mm512_fmadd_ps(acc[c][v], scale, _mm512_loadu_ps(sums)));
      }
    }
  }
}

}  // namespace vlkv::cpu
