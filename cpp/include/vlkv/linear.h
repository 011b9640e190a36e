// Linear: products of the same rows with one or more matrices, whose weights are read in their stored format.
#pragma once

#include "vlkv/attend.h"
#include "vlkv/types.h"

namespace vlkv {

enum class WeightFormat : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kInt8 = 3,  // (code - 128) * scale, or code * scale + minimum
  kInt4 = 4,  // (code - zero) * scale, or code * scale + minimum
};

// What a Precision (vlkv/types.h) does here.
//
// kFixed16: with the quantised formats, rows are rounded to fixed point. A span of 32 of a row's numbers (K
// in spans from the first) has a scale s, 1/32512 of its largest magnitude m, and a number x becomes s times
// an integer of 16 bits, which differs from x by at most m 2^-15.9. Products with codes are exact sums in 32
// bits; the sums over spans are in float32. It needs a processor with AVX512_VNNI. A row that has a number
// that is not finite, or whose largest magnitude is not 0 and not in [2^-64, 2^64], is multiplied as by
// kFloat32.
//
// kBFloat16: more than kFewRows rows, and weights of the float formats, are rounded to bfloat16 (differing by
// at most 2^-8 of each number); the codes of quantised formats are exact, and sums are in float32. It needs a
// processor with AVX512_BF16. Up to kFewRows rows it equals kFixed16.
//
// Where formats, processor or build do not suit, both equal kFloat32.
//
// One dimension legend: M rows, K depth, N columns of a product, G = ceil(K / block) blocks.
//
//   weight  [N, K]             kFloat32, kFloat16, kBFloat16
//           [N, G, block]      kInt8, a byte a code
//           [N, G, block / 2]  kInt4, two codes a byte, the earlier in the low bits
//   scales  [N, G]             float32 or float16; kInt8 and kInt4 alone
//   zeros   [N, G]             uint8, 0 to 16, or null: 8; kInt4 alone
//   minimums [N, G]            float16, or null; kInt8, or kInt4 without zeros
//   bias    [N]                float32, or null
//   residual [M, N]            float32, or null: added to the result
//   result  [M, N]             float32, written; overlaps no input
//
// Weights of AWQ and GPTQ (without a permutation of the rows) convert to this form without loss: GPTQ's zeros
// go up to 16; minimums are those of GGUF's Q4_1. Codes past K are read and multiplied by zero.
struct LinearProduct {
  int64_t columns = 0;
  const void* weight = nullptr;
  const void* scales = nullptr;
  const uint8_t* zeros = nullptr;
  const uint16_t* minimums = nullptr;
  const float* bias = nullptr;
  const float* residual = nullptr;
  float* result = nullptr;
};

//   input  [M, K]  float32
//   norm   [K]     float32, or null: RMSNorm (arXiv 1910.07467), rows x / sqrt(mean(x^2) + epsilon) * norm
//   gated  [M, K]  float32, or null: SwiGLU (arXiv 2002.05202), rows x / (1 + exp(-x)) * gated. Not with norm
//
// The rows that are multiplied are those of the input, or what norm or gated makes of them, in float32.
//
// result = rows . weight^T + bias + residual, in float32: a weight is widened exactly (a code times its scale
// is rounded once), a row is never rounded below float32 unless `precision` says so.
//
// Method: up to kFewRows rows share one read of the weights, in parts of about 32 KiB that threads take
// dynamically. More rows are multiplied in tiles, with weights widened one panel at a time. Extra memory: a
// copy of the rows, and half a MiB and a tile of rows per thread. Up to kFewRows rows, a row's result is bit
// for bit the same whatever the other rows are, and for every number of threads; the same holds above
// kFewRows, though the bits of the two cases may differ.
struct LinearParams {
  static constexpr int64_t kFewRows = 16;

  int64_t rows = 0, depth = 0;
  WeightFormat format = WeightFormat::kFloat32;
  int64_t block = 0;  // kInt8, kInt4: a multiple of 32
  DType scale_type = DType::kFloat32;
  Precision precision = Precision::kFloat32;
  const float* input = nullptr;
  const float* norm = nullptr;
  float epsilon = 0.0F;
  const float* gated = nullptr;
  const LinearProduct* products = nullptr;
  int64_t count = 0;  // of products
  int threads = 0;    // 0 = vlkv::threads()
};

// Bytes of a product's weights, its scales, and its zeros if it has them.
VLKV_API int64_t weight_bytes(const LinearParams& params, int64_t columns);

// Checks sizes, pointers and settings without reading tensors. Throws InvalidArgument.
VLKV_API void validate(const LinearParams& params);

// Validates, then multiplies. Runs on `loop` if it has a run function, else on this library's threads. Throws
// InvalidArgument, or std::bad_alloc with nothing written.
VLKV_API void run_cpu(const LinearParams& params, const Loop& loop = {});

// Whether this processor and this build multiply in bfloat16, and codes with rows in fixed point.
VLKV_API bool bfloat16_products();
VLKV_API bool fixed16_products();

}  // namespace vlkv
