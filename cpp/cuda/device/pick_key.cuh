// The order of logits, which Pick and Draw share: the largest first, of equal ones the lowest id.
#pragma once

#include "cuda/device/block.cuh"
#include "cuda/device/evict_args.cuh"

namespace vlkv::cuda {

// Orders floats as Pick does: NaN above every number, 0 equal to -0.
VLKV_HOST_DEVICE uint32_t pick_rank(uint32_t bits) {
  return (bits & 0x7fffffffU) > 0x7f800000U ? 0xffffffffU : ordered(bits);
}

// A logit's rank, then its id: of equal logits the lower id is the larger number.
__device__ __forceinline__ uint64_t pick_key(float logit, uint32_t id) {
  return uint64_t{pick_rank(__float_as_uint(logit))} << 32 | (0xffffffffU - id);
}

__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ __forceinline__ uint64_t largest_of_lanes(uint64_t key) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    key = larger(key, __shfl_xor_sync(kAllLanes, key, distance));
  }
  return key;
}

}  // namespace vlkv::cuda
