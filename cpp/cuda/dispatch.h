// Code that the operators' dispatch shares: alignment, views, the workspace.
#pragma once

#include "core/check.h"
#include "cuda/device/types.cuh"
#include "vlkv/cuda.h"

namespace vlkv::cuda {

// The largest of 16, 4 and 2 bytes to which all of a tensor's rows are aligned. The stride of an axis with
// one element is ignored.
template <class V>
int64_t row_unit(const V& view, int64_t batch, int64_t heads, int64_t slots, int64_t head_dim) {
  const int64_t size = size_of(view.dtype);
  for (const int64_t unit : {16, 4}) {
    if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(unit) == 0 &&
        head_dim * size % unit == 0 && (batch <= 1 || view.stride_b * size % unit == 0) &&
        (heads <= 1 || view.stride_h * size % unit == 0) &&
        (slots <= 1 || view.stride_s * size % unit == 0)) {
      return unit;
    }
  }
  return size;
}

template <class V>
void require_elements_aligned(const Check& check, const char* name, const V& view) {
  const int64_t size = size_of(view.dtype);
  check.require(reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(size) == 0, name,
                "'s address is not a multiple of its element's ", size, " bytes");
}

inline void require_workspace(const Check& check, const void* workspace, size_t size) {
  check.require(workspace != nullptr || size == 0, "workspace is null, ", size, " bytes are needed");
  check.require(reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment == 0 || size == 0,
                "workspace's address is not a multiple of ", kWorkspaceAlignment, " bytes");
}

template <class T>
T* at(void* workspace, size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(workspace) + offset);
}

}  // namespace vlkv::cuda
