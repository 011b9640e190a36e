// Evict on a CUDA device: checks the arguments and chooses the kernels.
#include "vlkv/evict.h"

#include <algorithm>

#include "cuda/dispatch.h"
#include "cuda/launchers.h"
#include "cuda/workspace.h"

namespace vlkv {
namespace {

using cuda::EvictArgs;

struct Moved {
  cuda::MovedRows rows;
  DType dtype;
  int64_t unit;
};

Moved moved(const EvictParams& p, const ConstView& from, const View& to) {
  const int64_t size = size_of(from.dtype);
  return {{static_cast<const char*>(from.data), static_cast<char*>(to.data), from.stride_b * size,
           from.stride_h * size, from.stride_s * size, to.stride_b * size, to.stride_h * size,
           to.stride_s * size},
          from.dtype,
          std::min(cuda::row_unit(from, p.batch, p.kv_heads, p.slots, p.head_dim),
                   cuda::row_unit(to, p.batch, p.kv_heads, p.capacity, p.head_dim))};
}

EvictArgs arguments(const EvictParams& p, void* workspace) {
  EvictArgs a{};
  a.batch = p.batch, a.kv_heads = p.kv_heads, a.slots = p.slots;
  a.head_dim = p.head_dim, a.capacity = p.capacity;
  a.score = p.score, a.score_stride_b = p.score_stride_b, a.score_stride_h = p.score_stride_h;
  a.length = p.length, a.keep = p.keep, a.sinks = p.sinks, a.recent = p.recent;
  a.position = p.position_out;
  a.position_stride_b = p.position_stride_b, a.position_stride_h = p.position_stride_h;
  a.per_head = p.per_head || p.kv_heads == 1;
  a.zero_tail = p.zero_tail;
  const cuda::EvictLayout layout = cuda::layout(p);
  if (!a.per_head) a.shared_score = cuda::at<float>(workspace, layout.shared_score);
  a.parts = layout.parts;
  if (a.parts > 1) {
    a.part_bins = cuda::at<uint32_t>(workspace, layout.part_bins);
    a.part_facts = cuda::at<cuda::EvictPart>(workspace, layout.part_facts);
    a.candidates = cuda::at<uint32_t>(workspace, layout.candidates);
  }
  return a;
}

void move(EvictArgs& args, const EvictParams& p, DType dtype, int64_t unit, CudaStream stream) {
  if (p.merge == Merge::kNone) {
    cuda::launch_evict_gather(args, p.head_dim * size_of(dtype), unit, stream);
  } else if (dtype == DType::kFloat32) {
    cuda::launch_evict_merge<float>(args, unit, stream);
  } else if (dtype == DType::kFloat16) {
    cuda::launch_evict_merge<cuda::Float16>(args, unit, stream);
  } else {
    cuda::launch_evict_merge<cuda::BFloat16>(args, unit, stream);
  }
}

}  // namespace

void run_cuda(const EvictParams& p, void* workspace, CudaStream stream) {
  validate(p);
  const Check check("evict");
  check.view("key", p.key, 0);
  check.view("value", p.value, 0);
  cuda::require_elements_aligned(check, "key", p.key);
  cuda::require_elements_aligned(check, "value", p.value);
  cuda::require_elements_aligned(check, "key_out", p.key_out);
  cuda::require_elements_aligned(check, "value_out", p.value_out);
  cuda::require_workspace(check, workspace, cuda_workspace_size(p));
  if (p.batch == 0 || p.capacity == 0) return;
  EvictArgs args = arguments(p, workspace);
  if (!args.per_head) cuda::launch_evict_sum_heads(args, stream);
  cuda::launch_evict_select(args, stream);

  const Moved key = moved(p, p.key, p.key_out), value = moved(p, p.value, p.value_out);
  if (key.dtype == value.dtype) {
    args.moved[0] = key.rows, args.moved[1] = value.rows, args.moves = 2;
    move(args, p, key.dtype, std::min(key.unit, value.unit), stream);
    return;
  }
  args.moves = 1;
  for (const Moved& one : {key, value}) {
    args.moved[0] = one.rows;
    move(args, p, one.dtype, one.unit, stream);
  }
}

}  // namespace vlkv
