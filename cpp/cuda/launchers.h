// The launchers: each chooses a kernel and a grid. Plain C++, so that the dispatch needs no CUDA compiler.
#pragma once

#include "cuda/device/attend_args.cuh"
#include "cuda/device/draw_args.cuh"
#include "cuda/device/evict_args.cuh"
#include "cuda/device/move_args.cuh"
#include "cuda/device/pick_args.cuh"
#include "cuda/device/score_args.cuh"
#include "vlkv/cuda.h"

namespace vlkv::cuda {

// Type: the type of query and key: Float16 or BFloat16 for the matrix units, float, or AnyType if they
// differ.
struct AnyType;
template <class Type>
void launch_score_rows(ScoreArgs args, CudaStream stream);
template <class Type>
void launch_score_columns(ScoreArgs args, CudaStream stream);
void launch_score_combine(const ScoreArgs& args, CudaStream stream);
void launch_score_clear(const ScoreArgs& args, CudaStream stream);
void launch_score_counts(const ScoreArgs& args, CudaStream stream);

void launch_evict_sum_heads(const EvictArgs& args, CudaStream stream);
void launch_evict_select(const EvictArgs& args, CudaStream stream);
// unit: bytes that a thread moves at a time, 16, 4 or 2. Sets the arguments' row_units itself.
void launch_evict_gather(EvictArgs args, int64_t row_bytes, int64_t unit, CudaStream stream);
template <class Type>
void launch_evict_merge(EvictArgs args, int64_t unit, CudaStream stream);

void launch_attend_append(const AttendArgs& args, CudaStream stream);
// few: 16 rows or fewer of a KV group.
template <class Type>
void launch_attend_rows(const AttendArgs& args, bool few, CudaStream stream);
template <class Type>
void launch_attend_join(const AttendArgs& args, CudaStream stream);

void launch_move_slots(const MoveArgs& args, CudaStream stream);
void launch_pick(const PickArgs& args, int64_t batch, CudaStream stream);
void launch_draw(const DrawArgs& args, int64_t batch, CudaStream stream);

}  // namespace vlkv::cuda
