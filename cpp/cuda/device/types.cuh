// Element types and strided views for kernels: plain structures for both compilers.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define VLKV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VLKV_HOST_DEVICE inline
#endif

namespace vlkv::cuda {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

// [B, heads, slots, D], strides in elements, D contiguous.
struct CacheView {
  const char* data;
  int64_t stride_b, stride_h, stride_s;
};

VLKV_HOST_DEVICE int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

VLKV_HOST_DEVICE int64_t parts(int64_t total, int64_t each) {
  return total <= 0 ? 0 : (total - 1) / each + 1;
}

}  // namespace vlkv::cuda
