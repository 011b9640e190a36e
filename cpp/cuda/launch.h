// Launches a kernel. Under a host compiler the file that includes the launchers declares launch() first
// (cpp/tests/cuda/emulation.h).
#pragma once

#include "vlkv/cuda.h"

#ifdef __CUDACC__

#include <cuda_runtime_api.h>

#include <limits>
#include <string>

namespace vlkv::cuda {

// Queues `blocks` blocks of `threads` threads. `op` is the operator that an error names.
template <class Args>
void launch(const char* op, void (*kernel)(Args), int64_t blocks, int threads, const Args& args,
            CudaStream stream) {
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int32_t>::max()) {
    throw InvalidArgument("[" + std::string(op) + "] takes " + std::to_string(blocks) +
                          " blocks, more than a grid's 2147483647: split the batch");
  }
  void* arguments[] = {const_cast<Args*>(&args)};
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  const cudaError_t error =
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, 0, stream);
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error("[" + std::string(op) + "] no launch: " + cudaGetErrorString(error));
}

}  // namespace vlkv::cuda

#endif  // __CUDACC__
