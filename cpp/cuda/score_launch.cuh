// Score's two passes for one element type; score_<type>.cu instantiates them.
#pragma once

#include "cuda/device/score_columns.cuh"
#include "cuda/device/score_float.cuh"
#include "cuda/device/score_rows.cuh"
#include "cuda/device/score_tensor.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

template <class Product>
void launch_rows(const ScoreArgs& args, CudaStream stream) {
  const int64_t blocks = args.row_blocks * args.splits * args.batch * args.kv_heads;
  launch("score", score_rows<Product>, blocks, kScoreThreads, args, stream);
}

template <class Product>
void launch_columns(const ScoreArgs& args, CudaStream stream) {
  launch("score", score_columns<Product>, args.tiles * args.batch * args.kv_heads, kScoreThreads, args,
         stream);
}

template <class Product>
ScoreArgs walking(ScoreArgs args) {
  set_walk(args, Product::kAtOnce);
  return args;
}

template <class Type>
inline constexpr bool kOnMatrixUnits = false;
template <>
inline constexpr bool kOnMatrixUnits<Float16> = true;
template <>
inline constexpr bool kOnMatrixUnits<BFloat16> = true;

template <class Type>
void launch_score_rows(const ScoreArgs& args, CudaStream stream) {
  if constexpr (!kOnMatrixUnits<Type>) {
    launch_rows<FloatProduct<Type>>(args, stream);
  } else if (!args.copies_16 || args.head_dim > 128 || args.group_rows > INT32_MAX - kTileRows) {
    launch_rows<TensorProduct<Type, 128, false>>(args, stream);
  } else if (args.head_dim > 64) {
    launch_rows<TensorProduct<Type, 128, true>>(walking<TensorProduct<Type, 128, true>>(args), stream);
  } else {
    launch_rows<TensorProduct<Type, 64, true>>(walking<TensorProduct<Type, 64, true>>(args), stream);
  }
}

template <class Type>
void launch_score_columns(const ScoreArgs& args, CudaStream stream) {
  if constexpr (!kOnMatrixUnits<Type>) {
    launch_columns<FloatProduct<Type>>(args, stream);
  } else if (!args.copies_16 || args.head_dim > 128 || args.group_rows > INT32_MAX - kTileRows) {
    launch_columns<TensorProduct<Type, 128, false>>(args, stream);
  } else if (args.head_dim > 64) {
    launch_columns<TensorProduct<Type, 128, true>>(walking<TensorProduct<Type, 128, true>>(args), stream);
  } else {
    launch_columns<TensorProduct<Type, 64, true>>(walking<TensorProduct<Type, 64, true>>(args), stream);
  }
}

}  // namespace vlkv::cuda
