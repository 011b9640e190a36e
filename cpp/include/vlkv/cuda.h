// The operators on a CUDA device. No CUDA header is needed to call them: a stream is an opaque pointer, a
// cudaStream_t or a CUstream.
#pragma once

#include <cstddef>

#include "vlkv/attend_rows.h"
#include "vlkv/evict.h"
#include "vlkv/move_slots.h"
#include "vlkv/score.h"

struct CUstream_st;

namespace vlkv {

using CudaStream = CUstream_st*;

// Whether the kernels were compiled into this library. Says nothing of the machine's devices.
VLKV_API bool has_cuda();

// Bytes of device memory that run_cuda takes as `workspace` for parameters of these sizes, or of sizes none
// of which is larger. Reads the sizes and settings alone, no pointer, and gives the same answer in every
// build, so that a machine without CUDA can plan for one that has it. Sizes below 0 count as 0.
VLKV_API size_t cuda_workspace_size(const ScoreParams& params);
VLKV_API size_t cuda_workspace_size(const EvictParams& params);
VLKV_API size_t cuda_workspace_size(const AttendRowsParams& params);

// As run_cpu, with every pointer of the parameters in device memory: tensors, and the arrays of each prompt
// too (row_position; length, keep, sinks, recent, count). The host therefore checks sizes, strides, pointers
// and settings with validate(), and cannot check those arrays. The kernels clamp what they read:
//
//   row_position  to [-1, C - 1]
//   length        to [0, C]
//   keep          to [0, min(length, capacity)]
//   sinks         to [0, keep]
//   recent        to [0, keep - sinks]
//   count         to [0, min(S, C - length)]
//
// so that no value leads outside a buffer. Within those ranges results are those of run_cpu but for float32
// rounding in Score, where a weight under 2^-126 of its row's largest is 0 and products of bfloat16 are
// summed before they are scaled; the same input gives the same bits. Tensors are aligned to their elements;
// those whose rows all begin and end on 16 bytes are read the fastest. `threads` is not read.
//
// The work is queued on `stream` of the current device: nothing is allocated, nothing is waited for.
// `workspace` has cuda_workspace_size bytes, is aligned to 256 bytes, is not shared with work that may run at
// the same time, and may be null where the size is 0. Launches may be captured into a CUDA graph.
//
// Throws InvalidArgument, Unavailable where the build has no CUDA, or std::runtime_error with CUDA's text
// where a launch failed.
VLKV_API void run_cuda(const ScoreParams& params, void* workspace, CudaStream stream);
VLKV_API void run_cuda(const EvictParams& params, void* workspace, CudaStream stream);
VLKV_API void run_cuda(const AttendRowsParams& params, void* workspace, CudaStream stream);
// Everything that the parameters point to is device memory, the table of arrays too; no workspace.
VLKV_API void run_cuda(const MoveSlotsParams& params, CudaStream stream);

}  // namespace vlkv
