// The inner loops that are compiled once for each instruction set (kernels_avx2.cpp and its siblings).
#pragma once

#include <cstdint>

#include "vlkv/runtime.h"

namespace vlkv::cpu {

// Keys in a tile of Score: a multiple of what the micro-kernels take at once.
inline constexpr int kTileKeys = 96;

// A block of query rows of one KV group. `lanes` rows share a vector.
struct ScoreBlock {
  int vectors = 0, head_dim = 0;
  const float* query = nullptr;  // [vectors][head_dim][lanes], times scale and log2(e); 0 in unused lanes
  const int32_t* position = nullptr;  // [vectors][lanes], the last key attended to; INT32_MAX in unused lanes
  const int32_t* last = nullptr;      // [vectors], the largest position of the used lanes
  const int32_t* first = nullptr;     // [vectors], the smallest
  int32_t* valid = nullptr;           // [vectors][lanes], -1 where the row counts, else 0
  float* weight = nullptr;            // [tiles][vectors][kTileKeys][lanes]
  float* stats = nullptr;             // [tiles][vectors][2][lanes]
};

struct Kernels {
  int lanes;  // rows in a vector

  // Converts `count` contiguous elements. Rounds to nearest even; a NaN stays a NaN.
  void (*to_float)(const void* from, DType type, float* to, int64_t count);
  void (*from_float)(const float* from, DType type, void* to, int64_t count);

  // Pass 1, one tile of keys: weight = 2^(q.k - m), stats = (m, sum of weights), m the tile's maximum of each
  // row.
  void (*weigh)(const ScoreBlock& block, int tile, const float* key, int64_t key_stride, int keys);

  // Between the passes: stats become (factor that turns a weight into A, the weight that is the threshold).
  // Sets valid to 0 for rows whose softmax is not finite.
  void (*combine)(const ScoreBlock& block, int tiles, float threshold);

  // Pass 2, one tile: adds the columns of A to score[0..keys); returns how many weights are under the
  // threshold.
  int64_t (*add_columns)(const ScoreBlock& block, int tile, int keys, float* score);

  // to[i] += from[i]
  void (*add)(const float* from, float* to, int64_t count);

  // The sum of all words, modulo 2^32.
  uint32_t (*sum_words)(const uint32_t* from, int64_t count);

  // Multiply-adds between registers, for measuring the processor's rate; returns the floating point
  // operations.
  int64_t (*multiply_adds)(int64_t rounds);
};

// The table in use, and the table of one instruction set (null where this build or processor lacks it).
const Kernels& kernels();
const Kernels* kernels_of(Simd level);
void use_kernels(const Kernels& table);

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

}  // namespace vlkv::cpu
