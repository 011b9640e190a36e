// Score's two passes for one element type; score_<type>.cu instantiates them.
#pragma once

#include "cuda/device/score_columns.cuh"
#include "cuda/device/score_float.cuh"
#include "cuda/device/score_rows.cuh"
#include "cuda/device/score_tensor.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

// A product's kernels, and the rows of its walks' steps; 0 if it does not walk.
struct ScoreKernels {
  void (*rows)(ScoreArgs);
  void (*columns)(ScoreArgs);
  int64_t walk_step;
};

template <class Product>
ScoreKernels kernels_of(int64_t walk_step = 0) {
  return {score_rows<Product>, score_columns<Product>, walk_step};
}

template <class Type, int kDepth>
ScoreKernels walking() {
  using Product = TensorProduct<Type, kDepth, true>;
  return kernels_of<Product>(Product::kAtOnce);
}

template <class Type>
inline constexpr bool kOnMatrixUnits = false;
template <>
inline constexpr bool kOnMatrixUnits<Float16> = true;
template <>
inline constexpr bool kOnMatrixUnits<BFloat16> = true;

template <class Type>
ScoreKernels score_kernels(const ScoreArgs& args) {
  if constexpr (!kOnMatrixUnits<Type>) {
    return kernels_of<FloatProduct<Type>>();
  } else if (!args.copies_16 || args.head_dim > 128 || args.group_rows > INT32_MAX - kTileRows) {
    return kernels_of<TensorProduct<Type, 128, false>>();
  } else {
    return args.head_dim > 64 ? walking<Type, 128>() : walking<Type, 64>();
  }
}

template <class Type>
void launch_score_rows(ScoreArgs args, CudaStream stream) {
  const ScoreKernels kernels = score_kernels<Type>(args);
  if (kernels.walk_step != 0) set_walk(args, kernels.walk_step);
  const int64_t blocks = args.row_blocks * args.splits * args.batch * args.kv_heads;
  launch("score", kernels.rows, blocks, kScoreThreads, args, stream);
}

template <class Type>
void launch_score_columns(ScoreArgs args, CudaStream stream) {
  const ScoreKernels kernels = score_kernels<Type>(args);
  if (kernels.walk_step != 0) set_walk(args, kernels.walk_step);
  launch("score", kernels.columns, args.tiles * args.batch * args.kv_heads, kScoreThreads, args, stream);
}

}  // namespace vlkv::cuda
