// The operators for other languages: plain structures and error codes, no exceptions. Every buffer is passed
// with its size in bytes, and shapes and strides that exceed it are refused.
#ifndef VLKV_C_API_H_
#define VLKV_C_API_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define VLKV_C_API
#else
#define VLKV_C_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { VLKV_OK = 0, VLKV_INVALID_ARGUMENT = 1, VLKV_OUT_OF_MEMORY = 2, VLKV_INTERNAL = 3 };
enum { VLKV_FLOAT32 = 0, VLKV_FLOAT16 = 1, VLKV_BFLOAT16 = 2 };

// A tensor [B, heads, slots, D], strides in elements, D contiguous.
typedef struct {
  void* data;
  uint64_t bytes;
  int32_t dtype;
  int64_t stride_b, stride_h, stride_s;
} vlkv_tensor;

// The fields are those of vlkv/score.h. row_position is int64 [B, rows]; pairs, below and sparsity are [B]
// and may be null; score is [B, kv_heads, slots]; all are dense.
typedef struct {
  int64_t batch, query_heads, kv_heads, rows, slots, head_dim;
  vlkv_tensor query, key;
  const int64_t* row_position;
  uint64_t row_position_bytes;
  float scale, threshold;
  float* score;
  uint64_t score_bytes;
  int64_t *pairs, *below;
  uint64_t counts_bytes;
  int32_t accumulate, threads;
  float* sparsity;
  uint64_t sparsity_bytes;
} vlkv_score_params;

// The fields are those of vlkv/evict.h. score is [B, kv_heads, slots] and position_out
// [B, kv_heads, capacity], both dense; length, keep, sinks and recent are [B].
typedef struct {
  int64_t batch, kv_heads, slots, head_dim, capacity;
  vlkv_tensor key, value, key_out, value_out;
  const float* score;
  uint64_t score_bytes;
  const int64_t *length, *keep, *sinks, *recent;
  uint64_t lengths_bytes;
  int32_t* position_out;
  uint64_t position_bytes;
  int32_t per_head, merge, zero_tail, threads;
} vlkv_evict_params;

// The fields are those of vlkv/attend_rows.h; length and count are [B]. On a CUDA device only.
typedef struct {
  int64_t batch, query_heads, kv_heads, rows, slots, head_dim;
  vlkv_tensor query, key, value, key_cache, value_cache;
  const int64_t *length, *count;
  uint64_t lengths_bytes;
  float scale;
  vlkv_tensor result;
} vlkv_attend_params;

// The fields mean what those of vlkv/move_slots.h mean. On a CUDA device only.
typedef struct {
  int64_t layers, batch, kv_heads, slot_bytes;
  void* const* arrays;
  const int64_t *capacity, *slots, *last;
} vlkv_move_slots_params;

// The fields mean what those of vlkv/pick.h mean. On a CUDA device only.
typedef struct vlkv_pick_params {
  int64_t batch, vocab;
  const float* logits;
  int32_t* token;
  float* best;
} vlkv_pick_params;

// The fields mean what those of vlkv/draw.h mean; settings is [batch, 4]: temperature, top_k, top_p, uniform.
// On a CUDA device only.
typedef struct vlkv_draw_params {
  int64_t batch, vocab;
  const float* logits;
  const double* settings;
  int32_t* token;
  float* best;
} vlkv_draw_params;

// Returns a code; writes a text, cut to message_size and ended by 0, where it is not VLKV_OK. message may be
// null.
VLKV_C_API int vlkv_score_cpu(const vlkv_score_params* params, char* message, size_t message_size);
VLKV_C_API int vlkv_evict_cpu(const vlkv_evict_params* params, char* message, size_t message_size);

// On a CUDA device, as in vlkv/cuda.h: all memory is device memory, the work is queued on `stream` (a
// cudaStream_t), and `workspace` has at least the bytes that the workspace function returns, which is
// UINT64_MAX for null. vlkv_has_cuda returns 0 if the library was built without CUDA; the others then fail.
VLKV_C_API int vlkv_has_cuda(void);
VLKV_C_API uint64_t vlkv_score_cuda_workspace(const vlkv_score_params* params);
VLKV_C_API uint64_t vlkv_evict_cuda_workspace(const vlkv_evict_params* params);
VLKV_C_API uint64_t vlkv_attend_cuda_workspace(const vlkv_attend_params* params);
VLKV_C_API int vlkv_score_cuda(const vlkv_score_params* params, void* workspace, uint64_t workspace_bytes,
                               void* stream, char* message, size_t message_size);
VLKV_C_API int vlkv_evict_cuda(const vlkv_evict_params* params, void* workspace, uint64_t workspace_bytes,
                               void* stream, char* message, size_t message_size);
VLKV_C_API int vlkv_attend_cuda(const vlkv_attend_params* params, void* workspace, uint64_t workspace_bytes,
                                void* stream, char* message, size_t message_size);
VLKV_C_API int vlkv_move_slots_cuda(const vlkv_move_slots_params* params, void* stream, char* message,
                                    size_t message_size);
VLKV_C_API int vlkv_pick_cuda(const vlkv_pick_params* params, void* stream, char* message,
                              size_t message_size);
VLKV_C_API int vlkv_draw_cuda(const vlkv_draw_params* params, void* stream, char* message,
                              size_t message_size);

#ifdef __cplusplus
}
#endif

#endif  // VLKV_C_API_H_
