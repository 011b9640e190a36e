// The operators on a CUDA device. No CUDA header is needed to call them: a stream is an opaque pointer, a
// cudaStream_t or a CUstream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vlkv/attend_rows.h"
#include "vlkv/draw.h"
#include "vlkv/evict.h"
#include "vlkv/move_slots.h"
#include "vlkv/pick.h"
#include "vlkv/score.h"

struct CUstream_st;

namespace vlkv {

using CudaStream = CUstream_st*;

// Whether the kernels were compiled into this library, whatever devices the machine has.
VLKV_API bool has_cuda();

// Bytes of device memory that run_cuda needs as `workspace` for parameters of these sizes or smaller ones.
// Reads only sizes and settings, and returns the same in every build, so that a machine without CUDA can plan
// for one with CUDA. Sizes below 0 count as 0.
VLKV_API size_t cuda_workspace_size(const ScoreParams& params);
VLKV_API size_t cuda_workspace_size(const EvictParams& params);
VLKV_API size_t cuda_workspace_size(const AttendRowsParams& params);

// For owners of memory that guarantee no alignment: how much to request, and the aligned address in it.
inline constexpr size_t kWorkspaceAlignment = 256;
inline size_t with_alignment(size_t size) noexcept {
  return size == 0 || size > SIZE_MAX - kWorkspaceAlignment ? size : size + kWorkspaceAlignment;
}
inline void* aligned(void* workspace) noexcept {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  return reinterpret_cast<void*>((address + kWorkspaceAlignment - 1) / kWorkspaceAlignment *
                                 kWorkspaceAlignment);
}

// As run_cpu, with all pointers of the parameters in device memory: tensors and per-prompt arrays
// (row_position; length, keep, sinks, recent, count). The host therefore checks sizes, strides, pointers and
// settings with validate(), and cannot check those arrays. The kernels clamp their values:
//
//   row_position  to [-1, C - 1]
//   length        to [0, C]
//   keep          to [0, min(length, capacity)]
//   sinks         to [0, keep]
//   recent        to [0, keep - sinks]
//   count         to [0, min(S, C - length)]
//
// so no value leads outside a buffer. Within those ranges the results equal those of run_cpu, except for
// float32 rounding in Score, where a weight under 2^-126 of its row's largest is 0 and products of bfloat16
// are summed before they are scaled. Equal inputs give equal bits. Tensors are aligned to their elements;
// those whose rows are aligned to 16 bytes are read fastest. `threads` is ignored.
//
// The work is queued on `stream` of the current device, without allocation or synchronization. `workspace`
// has cuda_workspace_size bytes, is aligned to 256 bytes, is not shared with concurrent work, and may be null
// if the size is 0. Launches may be captured into a CUDA graph.
//
// Throws InvalidArgument, Unavailable if the build has no CUDA, or std::runtime_error with CUDA's text if a
// launch failed.
VLKV_API void run_cuda(const ScoreParams& params, void* workspace, CudaStream stream);
VLKV_API void run_cuda(const EvictParams& params, void* workspace, CudaStream stream);
VLKV_API void run_cuda(const AttendRowsParams& params, void* workspace, CudaStream stream);
// Everything that the parameters point to is device memory, the table of arrays too; no workspace.
VLKV_API void run_cuda(const MoveSlotsParams& params, CudaStream stream);
VLKV_API void run_cuda(const PickParams& params, CudaStream stream);
VLKV_API void run_cuda(const DrawParams& params, CudaStream stream);

}  // namespace vlkv
