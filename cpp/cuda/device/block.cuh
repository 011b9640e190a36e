// Sums over the lanes of a warp and the threads of a block, in a fixed order.
#pragma once

#include "cuda/device/ptx.cuh"

namespace vlkv::cuda {

// The sum of all lanes' values, in every lane.
__device__ __forceinline__ int64_t sum_of_lanes(int64_t value) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// The sum of the values of this lane and all before it.
template <class Sum>
__device__ __forceinline__ Sum running_sum_of_lanes(Sum value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const Sum before = __shfl_up_sync(kAllLanes, value, distance);
    value += lane >= distance ? before : 0;
  }
  return value;
}

// The sum of the values of all threads before this one. `warps` has an entry for each warp. Every thread of
// the block takes part; begins and ends with a barrier.
__device__ __forceinline__ int32_t sum_before(int32_t value, int32_t* warps) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int32_t running = running_sum_of_lanes(value);
  __syncthreads();
  if (thread % kWarp == kWarp - 1) warps[warp] = running;
  __syncthreads();
  int32_t before = running - value;
  for (int other = 0; other < warp; ++other) before += warps[other];
  __syncthreads();
  return before;
}

}  // namespace vlkv::cuda
