// Runs an operator on the CUDA backend with a workspace of the size that it asks for, filled with NaN.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>

#include "vlkv/cuda.h"

namespace vlkv::test {

// How often a random test repeats. Under AddressSanitizer each change of fibers is many times slower, and PTX
// is run instruction by instruction.
#if defined(__SANITIZE_ADDRESS__) || defined(VLKV_PTX)
constexpr int rounds(int n) { return n / 10 + 1; }
#else
constexpr int rounds(int n) { return n; }
#endif

template <class Params>
void run_emulated(const Params& params) {
  const size_t size = cuda_workspace_size(params);
  const auto free_it = [](void* memory) { std::free(memory); };
  const std::unique_ptr<void, decltype(free_it)> workspace(size > 0 ? std::aligned_alloc(256, size) : nullptr,
                                                           free_it);
  if (size > 0) std::memset(workspace.get(), 0xff, size);
  run_cuda(params, workspace.get(), nullptr);
}

}  // namespace vlkv::test
