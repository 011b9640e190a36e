// Score on a CUDA device: checks the arguments and chooses the kernels.
#include "vlkv/score.h"

#include <cmath>
#include <limits>

#include "cuda/dispatch.h"
#include "cuda/launchers.h"
#include "cuda/workspace.h"

namespace vlkv {
namespace {

using cuda::ScoreArgs;

cuda::CacheView view(const ConstView& v) {
  return {static_cast<const char*>(v.data), v.stride_b, v.stride_h, v.stride_s};
}

bool copies_16(const ScoreParams& p) {
  return cuda::row_unit(p.query, p.batch, p.query_heads, p.rows, p.head_dim) == 16 &&
         cuda::row_unit(p.key, p.batch, p.kv_heads, p.slots, p.head_dim) == 16;
}

ScoreArgs arguments(const ScoreParams& p, void* workspace) {
  const cuda::ScoreLayout layout = cuda::layout(p);
  ScoreArgs a{};
  a.batch = p.batch, a.kv_heads = p.kv_heads, a.group = p.query_heads / p.kv_heads;
  a.rows = p.rows, a.slots = p.slots, a.head_dim = p.head_dim;
  a.group_rows = a.group * p.rows;
  a.query = view(p.query), a.key = view(p.key);
  a.query_type = static_cast<int32_t>(p.query.dtype), a.key_type = static_cast<int32_t>(p.key.dtype);
  a.query_size = static_cast<int32_t>(size_of(p.query.dtype));
  a.key_size = static_cast<int32_t>(size_of(p.key.dtype));
  a.row_position = p.row_position, a.row_position_stride_b = p.row_position_stride_b;
  a.wide_positions = p.row_position_type == IndexType::kInt64;
  a.score = p.score, a.score_stride_b = p.score_stride_b, a.score_stride_h = p.score_stride_h;
  a.pairs = p.pairs, a.below = p.below, a.sparsity = p.sparsity, a.accumulate = p.accumulate;

  const float scale = p.scale > 0.0F ? p.scale : 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  a.query_factor = 1.0F, a.factor = scale * 1.44269504F;
  // No weight is below a threshold of 0; a subnormal threshold counts as 0, as on the CPU.
  a.log2_threshold = p.threshold >= std::numeric_limits<float>::min()
                         ? std::log2(p.threshold)
                         : -std::numeric_limits<float>::infinity();

  if (layout.size == 0) return a;
  a.splits = layout.splits, a.row_blocks = layout.row_blocks, a.tiles = layout.tiles;
  a.split_maximum = cuda::at<float>(workspace, layout.split_maximum);
  a.split_sum = cuda::at<float>(workspace, layout.split_sum);
  a.row_facts = cuda::at<cuda::RowFacts>(workspace, layout.row_facts);
  a.block_last = cuda::at<int32_t>(workspace, layout.block_last);
  a.block_pairs = cuda::at<int64_t>(workspace, layout.block_pairs);
  a.tile_below = cuda::at<int64_t>(workspace, layout.tile_below);
  return a;
}

template <class Type>
void run_passes(const ScoreArgs& args, CudaStream stream) {
  cuda::launch_score_rows<Type>(args, stream);
  cuda::launch_score_combine(args, stream);
  cuda::launch_score_columns<Type>(args, stream);
}

}  // namespace

bool has_cuda() { return true; }

void run_cuda(const ScoreParams& p, void* workspace, CudaStream stream) {
  validate(p);
  const Check check("score");
  cuda::require_elements_aligned(check, "query", p.query);
  check.view("key", p.key, 0);
  cuda::require_elements_aligned(check, "key", p.key);
  cuda::require_workspace(check, workspace, cuda_workspace_size(p));
  ScoreArgs args = arguments(p, workspace);

  if (args.tiles == 0) {
    if (!p.accumulate) cuda::launch_score_clear(args, stream);
  } else if (p.query.dtype != p.key.dtype || p.key.dtype == DType::kFloat32) {
    // In float32 the query is multiplied by the factor, as on the CPU: the logit may fit float32 even if the
    // dot product does not.
    args.query_factor = args.factor, args.factor = 1.0F;
    if (p.query.dtype == p.key.dtype) {
      run_passes<float>(args, stream);
    } else {
      run_passes<cuda::AnyType>(args, stream);
    }
  } else {
    args.copies_16 = copies_16(p);
    if (p.key.dtype == DType::kFloat16) {
      run_passes<cuda::Float16>(args, stream);
    } else {
      run_passes<cuda::BFloat16>(args, stream);
    }
  }
  if (p.pairs != nullptr || p.below != nullptr || p.sparsity != nullptr) {
    cuda::launch_score_counts(args, stream);
  }
}

}  // namespace vlkv
