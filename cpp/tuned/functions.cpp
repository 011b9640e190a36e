// The operators as plain functions on dense buffers, which `vlkv tune` calls with its oracles' inputs, on one
// thread.
#include "vlkv/attend.h"
#include "vlkv/evict.h"
#include "vlkv/linear.h"
#include "vlkv/score.h"

using vlkv::dense;
using vlkv::DType;

extern "C" {

// The fields are those of vlkv/attend.h; `cache` is a DType.
VLKV_API void vlkv_tune_attend(int64_t batch, int64_t rows, int64_t query_heads, int64_t kv_heads,
                               int64_t slots, int64_t head_dim, int32_t cache, const float* query,
                               const float* key, const float* value, void* key_cache, void* value_cache,
                               const int32_t* first, const int32_t* last, float* result) {
  vlkv::AttendParams p;
  p.batch = batch, p.rows = rows, p.query_heads = query_heads, p.kv_heads = kv_heads;
  p.slots = slots, p.head_dim = head_dim, p.cache = static_cast<DType>(cache);
  p.query = query, p.key = key, p.value = value, p.key_cache = key_cache, p.value_cache = value_cache;
  p.first = first, p.last = last, p.result = result, p.threads = 1;
  run_cpu(p);
}

// One product; the fields are those of vlkv/linear.h. A count says whether a buffer is given: 0 is null.
VLKV_API void vlkv_tune_linear(int64_t rows, int64_t depth, int64_t columns, int32_t format, int64_t block,
                               int32_t scale_type, int32_t precision, int64_t zero_count,
                               int64_t minimum_count, int64_t norm_count, int64_t gated_count,
                               int64_t residual_count, float epsilon, const float* input, const void* weight,
                               const void* scales, const uint8_t* zeros, const uint16_t* minimums,
                               const float* bias, const float* norm, const float* gated,
                               const float* residual, float* result) {
  vlkv::LinearProduct product;
  product.columns = columns, product.weight = weight, product.bias = bias;
  product.scales = block > 0 ? scales : nullptr;
  product.zeros = zero_count > 0 ? zeros : nullptr, product.result = result;
  product.minimums = minimum_count > 0 ? minimums : nullptr;
  product.residual = residual_count > 0 ? residual : nullptr;
  vlkv::LinearParams p;
  p.rows = rows, p.depth = depth, p.format = static_cast<vlkv::WeightFormat>(format), p.block = block;
  p.scale_type = static_cast<DType>(scale_type), p.input = input, p.products = &product, p.count = 1;
  p.norm = norm_count > 0 ? norm : nullptr, p.gated = gated_count > 0 ? gated : nullptr;
  p.precision = static_cast<vlkv::Precision>(precision);
  p.epsilon = epsilon, p.threads = 1;
  run_cpu(p);
}

// The fields are those of vlkv/score.h; `type` is the DType of the keys.
VLKV_API void vlkv_tune_score(int64_t batch, int64_t query_heads, int64_t kv_heads, int64_t rows,
                              int64_t slots, int64_t head_dim, int32_t type, const float* query,
                              const void* key, const int64_t* row_position, float* score, int64_t* pairs,
                              int64_t* below) {
  vlkv::ScoreParams p;
  p.batch = batch, p.query_heads = query_heads, p.kv_heads = kv_heads, p.rows = rows, p.slots = slots;
  p.head_dim = head_dim;
  p.query = dense(static_cast<const void*>(query), DType::kFloat32, query_heads, rows, head_dim);
  p.key = dense(key, static_cast<DType>(type), kv_heads, slots, head_dim);
  p.row_position = row_position, p.row_position_stride_b = rows;
  p.score = score, p.score_stride_b = kv_heads * slots, p.score_stride_h = slots;
  p.pairs = pairs, p.below = below, p.threads = 1;
  run_cpu(p);
}

// The fields are those of vlkv/evict.h; `type` is the DType of keys and values.
VLKV_API void vlkv_tune_evict(int64_t batch, int64_t kv_heads, int64_t slots, int64_t head_dim,
                              int64_t capacity, int32_t type, int32_t per_head, int32_t merge,
                              const void* key, const void* value, const float* score, const int64_t* length,
                              const int64_t* keep, const int64_t* sinks, const int64_t* recent, void* key_out,
                              void* value_out, int32_t* position_out) {
  vlkv::EvictParams p;
  p.batch = batch, p.kv_heads = kv_heads, p.slots = slots, p.head_dim = head_dim, p.capacity = capacity;
  p.key = dense(key, static_cast<DType>(type), kv_heads, slots, head_dim);
  p.value = dense(value, static_cast<DType>(type), kv_heads, slots, head_dim);
  p.key_out = dense(key_out, static_cast<DType>(type), kv_heads, capacity, head_dim);
  p.value_out = dense(value_out, static_cast<DType>(type), kv_heads, capacity, head_dim);
  p.score = score, p.score_stride_b = kv_heads * slots, p.score_stride_h = slots;
  p.length = length, p.keep = keep, p.sinks = sinks, p.recent = recent;
  p.position_out = position_out;
  p.position_stride_b = kv_heads * capacity, p.position_stride_h = capacity;
  p.per_head = per_head != 0, p.merge = static_cast<vlkv::Merge>(merge), p.threads = 1;
  run_cpu(p);
}

}  // extern "C"
