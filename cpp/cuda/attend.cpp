// AttendRows on a CUDA device: checks the arguments and chooses the kernels.
#include <cmath>

#include "cuda/dispatch.h"
#include "cuda/launchers.h"
#include "cuda/workspace.h"

namespace vlkv {
namespace {

template <class V>
cuda::CacheView view(const V& v) {
  return {static_cast<const char*>(v.data), v.stride_b, v.stride_h, v.stride_s};
}

template <class Type>
void run(const cuda::AttendArgs& args, bool few, CudaStream stream) {
  cuda::launch_attend_rows<Type>(args, few, stream);
  if (args.splits > 1) cuda::launch_attend_join<Type>(args, stream);
}

}  // namespace

void run_cuda(const AttendRowsParams& p, void* workspace, CudaStream stream) {
  validate(p);
  const Check check("attend");
  cuda::require_workspace(check, workspace, cuda_workspace_size(p));
  if (p.batch == 0 || p.rows == 0) return;
  const cuda::AttendLayout layout = cuda::layout(p);
  cuda::AttendArgs a{};
  a.batch = p.batch, a.kv_heads = p.kv_heads, a.group = p.query_heads / p.kv_heads;
  a.rows = p.rows, a.slots = p.slots, a.head_dim = p.head_dim;
  a.group_rows = a.group * p.rows;
  a.query = view(p.query), a.key = view(p.key), a.value = view(p.value);
  a.key_cache = view(p.key_cache), a.value_cache = view(p.value_cache), a.result = view(p.result);
  a.length = p.length, a.count = p.count;
  const float scale = p.scale > 0.0F ? p.scale : 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  a.factor = scale * 1.44269504F;
  a.splits = layout.splits, a.row_blocks = layout.row_blocks;
  a.maximum = cuda::at<float>(workspace, layout.maximum);
  a.sum = cuda::at<float>(workspace, layout.sum);
  a.partial = cuda::at<float>(workspace, layout.partial);
  cuda::launch_attend_append(a, stream);
  if (p.query.dtype == DType::kFloat16) {
    run<cuda::Float16>(a, layout.few, stream);
  } else {
    run<cuda::BFloat16>(a, layout.few, stream);
  }
}

}  // namespace vlkv
