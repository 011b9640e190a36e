// The inner loops, which are compiled once per instruction set (kernels_avx2.cpp and its siblings).
#pragma once

#include <cstdint>

#include "cpu/constants.h"
#include "cpu/linear_kernels.h"
#include "vlkv/runtime.h"

namespace vlkv::cpu {

// Keys per tile of Score: a multiple of the keys that micro-kernels process at once.
inline constexpr int kTileKeys = VLKV_SCORE_TILE_KEYS;

// A block of query rows of one KV group. `lanes` rows share a vector. Vectors are stored in groups of
// Kernels::group (the last group has the rest); within a group the elements of one dimension are contiguous.
struct ScoreBlock {
  int vectors = 0, head_dim = 0;
  int tile_vectors = 0;          // vectors that weight and stats have room for in a tile
  const float* query = nullptr;  // [groups][head_dim][vectors of the group][lanes], times scale and log2(e);
                                 // 0 in unused lanes
  const int32_t* position = nullptr;  // [vectors][lanes], the last key attended to; INT32_MAX in unused lanes
  const int32_t* last = nullptr;      // [vectors], the largest position of the used lanes
  const int32_t* first = nullptr;     // [vectors], the smallest
  int32_t* valid = nullptr;           // [vectors][lanes], -1 where the row counts, else 0
  float* whole = nullptr;             // [vectors][2][lanes], each row's maximum and 1 / sum over all tiles
  float* weight = nullptr;            // [tiles][tile_vectors][kTileKeys][lanes]
  float* stats = nullptr;             // [tiles][tile_vectors][2][lanes], a tile's maximum and sum

  // The offset of a vector's part, in vectors.
  int64_t weight_at(int tile, int vector) const { return stats_at(tile, vector) / 2 * kTileKeys; }
  int64_t stats_at(int tile, int vector) const { return (int64_t{tile} * tile_vectors + vector) * 2; }
};

// A tile of keys in float32.
struct KeyTile {
  const float* key = nullptr;
  int64_t stride = 0;  // elements from one key to the next
  int index = 0;       // keys [index * kTileKeys, index * kTileKeys + keys) of the prompt
  int keys = 0;        // 1 to kTileKeys
  int next = 0;        // the tile after this one is index + next, its keys as far in memory; 0: not known
};

// Keys per tile of Attend, whose weights are stored between the two products. The tile's keys, then its
// values, stay in the first-level cache for the query heads after the first four.
inline constexpr int kAttendKeys = VLKV_ATTEND_KEYS;

// Consecutive slots of one KV head's cache, and the heads of one row, which read it.
struct AttendPart {
  const float* query = nullptr;  // [heads][head_dim], times scale and log2(e)
  const void* key = nullptr;     // [keys] rows of `type`
  const void* value = nullptr;   // [keys] rows of `type`
  DType type = DType::kFloat32;
  int heads = 0, keys = 0, head_dim = 0;
  float* state = nullptr;  // [heads][2 + head_dim]: the largest logit m, the sum of 2^(q.k - m), that of each
                           // times its value
};

// Keys per tile of Attend with several rows.
inline constexpr int kAttendBlockKeys = VLKV_ATTEND_BLOCK_KEYS;

// Queries of one KV head, up to Kernels::attend_vectors vectors of them; a lane is a query.
struct AttendQueries {
  int vectors = 0, head_dim = 0;
  const void* query = nullptr;    // times scale and log2(e): float [head_dim][vectors][lanes]; bfloat16
                                  // [head_dim / 2][vectors][lanes][2]
  const int32_t* seen = nullptr;  // [vectors][lanes], how many of the cache's slots each query attends to
  int least = 0, most = 0;        // the smallest and the largest of `seen`
  float* weight = nullptr;        // [kAttendBlockKeys][vectors][lanes], working memory
  float* state = nullptr;         // [2 + head_dim][vectors][lanes]: the largest logit m, the sum of
                                  // 2^(q.k - m), that of each times its value
};

// A tile of keys and values in float32 or bfloat16.
struct AttendKeys {
  const void* key = nullptr;
  const void* value =
      nullptr;              // in bfloat16 [(keys + 1) / 2][head_dim][2], with zeros for a missing last row
  int64_t stride = 0;       // elements from one row to the next
  int first = 0, keys = 0;  // slots [first, first + keys), up to kAttendBlockKeys
};

// The bounds of the pages of one KV head, and the queries that read it: vlkv/recall.h.
struct PageBounds {
  const float* query = nullptr;      // [heads][head_dim], times scale and log2(e)
  const float* largest = nullptr;    // [heads], each query's largest logit over the cache
  const uint16_t* bounds = nullptr;  // [pages][2][head_dim] bfloat16
  int heads = 0, pages = 0, head_dim = 0;
};

// Attend's tiles with products in bfloat16, of an even head_dim.
struct HalfAttend {
  // As Kernels::attend_block. Queries, keys, weights and values are rounded to bfloat16, sums are in float32.
  void (*attend_block)(const AttendQueries& queries, const AttendKeys& tile);
  // Rounds to nearest even; what is under 2^-126 becomes 0.
  void (*round)(const float* from, int64_t count, uint16_t* to);
  // Writes a tile's values from rows [rows][dim].
  void (*pair_rows)(const uint16_t* from, int rows, int dim, uint16_t* to);
};

struct Kernels {
  int lanes;  // rows in a vector
  int group;  // vectors of rows that are multiplied together

  // Converts `count` contiguous elements; for kInt8 they are one row. Rounds to nearest even; a NaN stays a
  // NaN.
  void (*to_float)(const void* from, DType type, float* to, int64_t count);
  void (*from_float)(const float* from, DType type, void* to, int64_t count);

  // Pass 1, one tile of keys: weight = 2^(q.k - m), stats = (m, sum of weights), m the tile's maximum of each
  // row.
  void (*weigh)(const ScoreBlock& block, const KeyTile& tile);

  // Between the passes: computes `whole`, and sets valid to 0 for rows whose softmax is not finite.
  void (*combine)(const ScoreBlock& block, int tiles);

  // Pass 2, one tile: adds the columns of A to score[0..keys); returns how many weights are under the
  // threshold.
  int64_t (*add_columns)(const ScoreBlock& block, int tile, int keys, float threshold, float* score);

  // Writes the state of a part.
  void (*attend)(const AttendPart& part);

  // Vectors of queries that attend_block takes.
  int attend_vectors;
  // Updates the state of queries with a tile that at least one of them attends to.
  void (*attend_block)(const AttendQueries& queries, const AttendKeys& tile);

  const HalfAttend* half_attend;  // null if the processor has no such products

  // Writes the rating of each page.
  void (*rate_pages)(const PageBounds& pages, float* rating);

  // to[i] += from[i]
  void (*add)(const float* from, float* to, int64_t count);

  // The sum of all words, modulo 2^32.
  uint32_t (*sum_words)(const uint32_t* from, int64_t count);

  // Executes multiply-adds between registers, to measure the processor's rate; returns the number of floating
  // point operations.
  int64_t (*multiply_adds)(int64_t rounds);

  LinearKernels linear;
};

// The table in use, and the table of one instruction set (null if this build or processor lacks it).
const Kernels& kernels();
const Kernels* kernels_of(Simd level);
void use_kernels(const Kernels& table);

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

}  // namespace vlkv::cpu
