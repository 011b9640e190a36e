#include "vlkv/c_api.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>

#include "core/check.h"
#include "vlkv/cuda.h"
#include "vlkv/evict.h"
#include "vlkv/score.h"

namespace {

using Wide = unsigned __int128;
using vlkv::Check;

template <class Run>
int guarded(char* message, size_t size, Run run) noexcept {
  const auto tell = [&](const char* text, int code) {
    if (message != nullptr && size > 0) {
      const size_t length = std::min(std::strlen(text), size - 1);
      std::memcpy(message, text, length);
      message[length] = '\0';
    }
    return code;
  };
  try {
    run();
    return VLKV_OK;
  } catch (const vlkv::InvalidArgument& error) {
    return tell(error.what(), VLKV_INVALID_ARGUMENT);
  } catch (const std::bad_alloc&) {
    return tell("out of memory", VLKV_OUT_OF_MEMORY);
  } catch (const std::exception& error) {
    return tell(error.what(), VLKV_INTERNAL);
  } catch (...) {
    return tell("unknown error", VLKV_INTERNAL);
  }
}

// Refuses a buffer smaller than a dense array of the given extents.
void holds(const Check& check, const char* name, uint64_t bytes, uint64_t item, int64_t b, int64_t h,
           int64_t n) {
  const Wide needed =
      Wide{item} * static_cast<uint64_t>(b) * static_cast<uint64_t>(h) * static_cast<uint64_t>(n);
  check.require(needed <= bytes, name, " has ", bytes, " bytes, less than its shape ", b, " x ", h, " x ", n,
                " takes");
}

// Refuses a tensor whose last element is outside its buffer, or, if it is written, whose rows overlap.
void holds(const Check& check, const char* name, const vlkv_tensor& t, const int64_t (&shape)[4],
           bool written) {
  if (std::find(shape, shape + 4, 0) != shape + 4) return;
  check.require(t.stride_b >= 0 && t.stride_h >= 0 && t.stride_s >= 0, name, " has a negative stride");
  const int64_t item = vlkv::size_of(static_cast<vlkv::DType>(t.dtype));
  check.require(reinterpret_cast<uintptr_t>(t.data) % static_cast<uint64_t>(item) == 0, name,
                " is not aligned");
  Wide last = static_cast<uint64_t>(shape[3]);
  const int64_t strides[3] = {t.stride_b, t.stride_h, t.stride_s};
  for (int axis = 0; axis < 3; ++axis) {
    last += Wide{static_cast<uint64_t>(shape[axis] - 1)} * static_cast<uint64_t>(strides[axis]);
  }
  check.require(last * static_cast<uint64_t>(item) <= t.bytes, name, " has ", t.bytes,
                " bytes, less than its shape and strides reach");
  // Axes in ascending order of strides: each stride must be at least the extent of all inner axes.
  Wide inner = static_cast<uint64_t>(shape[3]);
  int order[3] = {2, 1, 0};
  std::sort(order, order + 3, [&](int a, int b) { return strides[a] < strides[b]; });
  for (const int axis : order) {
    if (!written || shape[axis] == 1) continue;
    check.require(Wide{static_cast<uint64_t>(strides[axis])} >= inner, name, "'s rows overlap");
    inner = Wide{static_cast<uint64_t>(strides[axis])} * static_cast<uint64_t>(shape[axis] - 1) + inner;
  }
}

vlkv::ConstView const_view(const vlkv_tensor& t) {
  return {t.data, static_cast<vlkv::DType>(t.dtype), t.stride_b, t.stride_h, t.stride_s};
}

vlkv::View view(const vlkv_tensor& t) {
  return {t.data, static_cast<vlkv::DType>(t.dtype), t.stride_b, t.stride_h, t.stride_s};
}

vlkv::ScoreParams checked(const vlkv_score_params* params) {
  const Check check("score");
  check.require(params != nullptr, "params is null");
  const vlkv_score_params& c = *params;
  vlkv::ScoreParams p;
  p.batch = c.batch, p.query_heads = c.query_heads, p.kv_heads = c.kv_heads;
  p.rows = c.rows, p.slots = c.slots, p.head_dim = c.head_dim;
  p.query = const_view(c.query), p.key = const_view(c.key);
  p.row_position = c.row_position, p.row_position_stride_b = c.rows;
  p.scale = c.scale, p.threshold = c.threshold;
  p.score = c.score, p.score_stride_h = c.slots;
  p.pairs = c.pairs, p.below = c.below, p.sparsity = c.sparsity;
  p.accumulate = c.accumulate != 0, p.threads = c.threads;
  check.range("kv_heads", c.kv_heads, 1, 65536);
  check.range("slots", c.slots, 0, vlkv::kLargestDim);
  p.score_stride_b = c.kv_heads * c.slots;
  validate(p);
  check.view("key", p.key, 0);
  holds(check, "score", c.score_bytes, 4, c.batch, c.kv_heads, c.slots);
  holds(check, "row_position", c.row_position_bytes, 8, c.batch, 1, c.rows);
  if (c.pairs != nullptr || c.below != nullptr) holds(check, "pairs", c.counts_bytes, 8, c.batch, 1, 1);
  if (c.sparsity != nullptr) holds(check, "sparsity", c.sparsity_bytes, 4, c.batch, 1, 1);
  holds(check, "query", c.query, {c.batch, c.query_heads, c.rows, c.head_dim}, false);
  if (c.rows > 0) holds(check, "key", c.key, {c.batch, c.kv_heads, c.slots, c.head_dim}, false);
  return p;
}

vlkv::EvictParams checked(const vlkv_evict_params* params) {
  const Check check("evict");
  check.require(params != nullptr, "params is null");
  const vlkv_evict_params& c = *params;
  vlkv::EvictParams p;
  p.batch = c.batch, p.kv_heads = c.kv_heads, p.slots = c.slots;
  p.head_dim = c.head_dim, p.capacity = c.capacity;
  p.key = const_view(c.key), p.value = const_view(c.value);
  p.key_out = view(c.key_out), p.value_out = view(c.value_out);
  p.score = c.score, p.score_stride_h = c.slots;
  p.length = c.length, p.keep = c.keep, p.sinks = c.sinks, p.recent = c.recent;
  p.position_out = c.position_out, p.position_stride_h = c.capacity;
  p.per_head = c.per_head != 0, p.merge = static_cast<vlkv::Merge>(c.merge);
  p.zero_tail = c.zero_tail != 0, p.threads = c.threads;
  check.range("kv_heads", c.kv_heads, 1, 65536);
  check.range("slots", c.slots, 0, vlkv::kLargestDim);
  check.range("capacity", c.capacity, 0, vlkv::kLargestDim);
  p.score_stride_b = c.kv_heads * c.slots;
  p.position_stride_b = c.kv_heads * c.capacity;
  validate(p);
  check.view("key", p.key, 0);
  check.view("value", p.value, 0);
  holds(check, "score", c.score_bytes, 4, c.batch, c.kv_heads, c.slots);
  holds(check, "length", c.lengths_bytes, 8, c.batch, 1, 1);
  holds(check, "position_out", c.position_bytes, 4, c.batch, c.kv_heads, c.capacity);
  holds(check, "key", c.key, {c.batch, c.kv_heads, c.slots, c.head_dim}, false);
  holds(check, "value", c.value, {c.batch, c.kv_heads, c.slots, c.head_dim}, false);
  holds(check, "key_out", c.key_out, {c.batch, c.kv_heads, c.capacity, c.head_dim}, true);
  holds(check, "value_out", c.value_out, {c.batch, c.kv_heads, c.capacity, c.head_dim}, true);
  return p;
}

vlkv::AttendRowsParams checked(const vlkv_attend_params* params) {
  const Check check("attend");
  check.require(params != nullptr, "params is null");
  const vlkv_attend_params& c = *params;
  vlkv::AttendRowsParams p;
  p.batch = c.batch, p.query_heads = c.query_heads, p.kv_heads = c.kv_heads;
  p.rows = c.rows, p.slots = c.slots, p.head_dim = c.head_dim;
  p.query = const_view(c.query), p.key = const_view(c.key), p.value = const_view(c.value);
  p.key_cache = view(c.key_cache), p.value_cache = view(c.value_cache), p.result = view(c.result);
  p.length = c.length, p.count = c.count, p.scale = c.scale;
  validate(p);
  holds(check, "length", c.lengths_bytes, 8, c.batch, 1, 1);
  holds(check, "query", c.query, {c.batch, c.query_heads, c.rows, c.head_dim}, false);
  holds(check, "key", c.key, {c.batch, c.kv_heads, c.rows, c.head_dim}, false);
  holds(check, "value", c.value, {c.batch, c.kv_heads, c.rows, c.head_dim}, false);
  holds(check, "key_cache", c.key_cache, {c.batch, c.kv_heads, c.slots, c.head_dim}, true);
  holds(check, "value_cache", c.value_cache, {c.batch, c.kv_heads, c.slots, c.head_dim}, true);
  holds(check, "result", c.result, {c.batch, c.query_heads, c.rows, c.head_dim}, true);
  return p;
}

vlkv::MoveSlotsParams checked(const vlkv_move_slots_params* params) {
  const Check check("move_slots");
  check.require(params != nullptr, "params is null");
  const vlkv_move_slots_params& c = *params;
  vlkv::MoveSlotsParams p;
  p.layers = c.layers, p.batch = c.batch, p.kv_heads = c.kv_heads, p.slot_bytes = c.slot_bytes;
  p.arrays = c.arrays, p.capacity = c.capacity, p.slots = c.slots, p.last = c.last;
  validate(p);
  return p;
}

vlkv::PickParams checked(const vlkv_pick_params* params) {
  const Check check("pick");
  check.require(params != nullptr, "params is null");
  vlkv::PickParams p;
  p.batch = params->batch, p.vocab = params->vocab;
  p.logits = params->logits, p.token = params->token, p.best = params->best;
  validate(p);
  return p;
}

vlkv::DrawParams checked(const vlkv_draw_params* params) {
  Check("draw").require(params != nullptr, "params is null");
  vlkv::DrawParams p;
  p.batch = params->batch, p.vocab = params->vocab, p.logits = params->logits;
  p.settings = reinterpret_cast<const vlkv::DrawSettings*>(params->settings);
  p.token = params->token, p.best = params->best;
  validate(p);
  return p;
}

template <class Params>
int run_on_cuda(const char* op, const Params* params, void* workspace, uint64_t workspace_bytes, void* stream,
                char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    const auto p = checked(params);
    const uint64_t needed = cuda_workspace_size(p);
    Check(op).require(workspace_bytes >= needed, "workspace has ", workspace_bytes, " bytes, less than ",
                      needed);
    run_cuda(p, workspace, static_cast<vlkv::CudaStream>(stream));
  });
}

}  // namespace

int vlkv_score_cpu(const vlkv_score_params* params, char* message, size_t message_size) {
  return guarded(message, message_size, [&] { run_cpu(checked(params)); });
}

int vlkv_evict_cpu(const vlkv_evict_params* params, char* message, size_t message_size) {
  return guarded(message, message_size, [&] { run_cpu(checked(params)); });
}

int vlkv_has_cuda(void) { return vlkv::has_cuda() ? 1 : 0; }

uint64_t vlkv_score_cuda_workspace(const vlkv_score_params* params) {
  if (params == nullptr) return UINT64_MAX;
  vlkv::ScoreParams p;
  p.batch = params->batch, p.query_heads = params->query_heads, p.kv_heads = params->kv_heads;
  p.rows = params->rows, p.slots = params->slots;
  return cuda_workspace_size(p);
}

uint64_t vlkv_evict_cuda_workspace(const vlkv_evict_params* params) {
  if (params == nullptr) return UINT64_MAX;
  vlkv::EvictParams p;
  p.batch = params->batch, p.kv_heads = params->kv_heads, p.slots = params->slots;
  p.per_head = params->per_head != 0;
  return cuda_workspace_size(p);
}

uint64_t vlkv_attend_cuda_workspace(const vlkv_attend_params* params) {
  if (params == nullptr) return UINT64_MAX;
  vlkv::AttendRowsParams p;
  p.batch = params->batch, p.query_heads = params->query_heads, p.kv_heads = params->kv_heads;
  p.rows = params->rows, p.slots = params->slots, p.head_dim = params->head_dim;
  return cuda_workspace_size(p);
}

int vlkv_score_cuda(const vlkv_score_params* params, void* workspace, uint64_t workspace_bytes, void* stream,
                    char* message, size_t message_size) {
  return run_on_cuda("score", params, workspace, workspace_bytes, stream, message, message_size);
}

int vlkv_evict_cuda(const vlkv_evict_params* params, void* workspace, uint64_t workspace_bytes, void* stream,
                    char* message, size_t message_size) {
  return run_on_cuda("evict", params, workspace, workspace_bytes, stream, message, message_size);
}

int vlkv_attend_cuda(const vlkv_attend_params* params, void* workspace, uint64_t workspace_bytes,
                     void* stream, char* message, size_t message_size) {
  return run_on_cuda("attend", params, workspace, workspace_bytes, stream, message, message_size);
}

int vlkv_move_slots_cuda(const vlkv_move_slots_params* params, void* stream, char* message,
                         size_t message_size) {
  return guarded(message, message_size,
                 [&] { run_cuda(checked(params), static_cast<vlkv::CudaStream>(stream)); });
}

int vlkv_pick_cuda(const vlkv_pick_params* params, void* stream, char* message, size_t message_size) {
  return guarded(message, message_size,
                 [&] { run_cuda(checked(params), static_cast<vlkv::CudaStream>(stream)); });
}

int vlkv_draw_cuda(const vlkv_draw_params* params, void* stream, char* message, size_t message_size) {
  return guarded(message, message_size,
                 [&] { run_cuda(checked(params), static_cast<vlkv::CudaStream>(stream)); });
}
