// Runs the CUDA kernels, as they are, on the host: include this, then cpp/cuda/*.cu. A block's threads are
// fibers of one thread that take turns at barriers and warp operations, in an order drawn anew for each
// block, some warps more seldom than others; blocks come one after the other. A barrier that not all threads
// reach ends the program. Copies to shared memory arrive when they are waited for and no sooner. Under
// AddressSanitizer global memory is checked as well.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda/device/types.cuh"
#include "vlkv/cuda.h"

#ifdef VLKV_PTX
#include "cuda/ptx/launch.h"
#endif

#define __device__
#define __global__ inline
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace vlkv::emulation {

struct Index {
  unsigned x;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

void run(int64_t blocks, int threads, const std::function<void()>& kernel);
void block_barrier();
// Each lane of the warp shows the others what `mine` points to, until all have returned from `read`, which is
// given the 32 pointers.
void exchange(const void* mine, const std::function<void(const void* const*)>& read);
int lane();

void copy_16(void* to, const void* from, bool valid);
void commit_copies();
void wait_copies(int pending);

float half_to_float(uint16_t bits);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_half(float x);
uint16_t float_to_bfloat16(float x);

// The value that `pick` makes of all lanes' values.
template <class T, class Pick>
auto of_lanes(T value, Pick pick) {
  decltype(pick(static_cast<const T*>(nullptr))) result{};
  exchange(&value, [&](const void* const* lanes) {
    T all[cuda::kWarp];
    for (int i = 0; i < cuda::kWarp; ++i) all[i] = *static_cast<const T*>(lanes[i]);
    result = pick(static_cast<const T*>(all));
  });
  return result;
}

template <class T, class Join>
T reduced(T value, Join join) {
  return of_lanes(value, [&](const T* all) {
    T result = all[0];
    for (int i = 1; i < cuda::kWarp; ++i) result = join(result, all[i]);
    return result;
  });
}

struct Fragments {
  uint32_t a[4], b[2];
};
// What mma.m16n8k16 adds to a lane's four sums.
void multiply_add(float (&c)[4], const Fragments& mine, float (*convert)(uint16_t));
void load_matrices(uint32_t (&fragment)[4], const void* row);
void load_transposed(uint32_t (&fragment)[4], const void* row);
void warp_barrier();

}  // namespace vlkv::emulation

extern vlkv::emulation::Index threadIdx, blockIdx;
using float4 = vlkv::emulation::Float4;

inline void __syncthreads() { vlkv::emulation::block_barrier(); }
inline void __syncwarp() { vlkv::emulation::warp_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return vlkv::emulation::of_lanes(value,
                                   [&](const T* all) { return all[vlkv::emulation::lane() ^ distance]; });
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  const int from = vlkv::emulation::lane() - distance;
  return vlkv::emulation::of_lanes(value, [&](const T* all) { return from < 0 ? value : all[from]; });
}
inline unsigned __ballot_sync(unsigned, bool holds) {
  return vlkv::emulation::of_lanes(holds, [](const bool* all) {
    unsigned lanes = 0;
    for (int i = 0; i < vlkv::cuda::kWarp; ++i) lanes |= static_cast<unsigned>(all[i]) << i;
    return lanes;
  });
}
inline bool __all_sync(unsigned mask, bool holds) { return __ballot_sync(mask, holds) == mask; }
inline int __reduce_max_sync(unsigned, int value) {
  return vlkv::emulation::reduced(value, [](int a, int b) { return a > b ? a : b; });
}
inline int __reduce_min_sync(unsigned, int value) {
  return vlkv::emulation::reduced(value, [](int a, int b) { return a < b ? a : b; });
}
inline int __reduce_add_sync(unsigned, int value) {
  return vlkv::emulation::reduced(value, [](int a, int b) { return a + b; });
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline uint32_t atomicAdd(uint32_t* to, uint32_t value) {
  const uint32_t before = *to;
  *to += value;
  return before;
}

namespace vlkv::cuda {

inline void copy_16(void* to, const void* from, bool valid) { emulation::copy_16(to, from, valid); }
inline void commit_copies() { emulation::commit_copies(); }
template <int kPending>
void wait_copies() {
  emulation::wait_copies(kPending);
}
inline void load_matrices(uint32_t (&fragment)[4], const void* row) {
  emulation::load_matrices(fragment, row);
}
inline void load_transposed(uint32_t (&fragment)[4], const void* row) {
  emulation::load_transposed(fragment, row);
}
template <class Element>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply_add(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}},
                          sizeof(Element) == 2 && std::is_same_v<Element, Float16>
                              ? emulation::half_to_float
                              : emulation::bfloat16_to_float);
}
inline float exp2_flushed(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38F ? 0.0F : y;
}
inline float to_float(float x) { return x; }
inline float to_float(Float16 x) { return emulation::half_to_float(x.bits); }
inline float to_float(BFloat16 x) { return emulation::bfloat16_to_float(x.bits); }
inline void from_float(float x, float& y) { y = x; }
inline void from_float(float x, Float16& y) { y.bits = emulation::float_to_half(x); }
inline void from_float(float x, BFloat16& y) { y.bits = emulation::float_to_bfloat16(x); }

template <class Type>
uint32_t packed(float low, float high) {
  Type pair[2];
  from_float(low, pair[0]);
  from_float(high, pair[1]);
  return uint32_t{pair[0].bits} | uint32_t{pair[1].bits} << 16;
}

// VLKV_PTX: what nvcc made of the kernel runs in its place.
template <class Args>
void launch(const char*, void (*kernel)(Args), int64_t blocks, int threads, const Args& args, CudaStream) {
#ifdef VLKV_PTX
  ptx::launch(reinterpret_cast<const void*>(kernel), blocks, threads, &args, sizeof args);
#else
  emulation::run(blocks, threads, [&] { kernel(args); });
#endif
}

}  // namespace vlkv::cuda
