// MoveSlots: a warp for each head of each prompt in each array.
#pragma once

#include "cuda/device/move_args.cuh"

namespace vlkv::cuda {

inline constexpr int kMoveSlotThreads = 128;

struct alignas(16) Moved {
  uint32_t word[4];
};

template <class Unit>
__device__ __forceinline__ void move_units(const char* source, char* target, int64_t bytes) {
  const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
  for (int64_t unit = threadIdx.x % kWarp; unit < units; unit += kWarp) {
    reinterpret_cast<Unit*>(target)[unit] = reinterpret_cast<const Unit*>(source)[unit];
  }
}

__global__ void __launch_bounds__(kMoveSlotThreads) move_slots(const MoveArgs args) {
  // in 32 bits, which `validate` has checked: divisions of 64 bits would need a stack
  constexpr uint32_t warps = kMoveSlotThreads / kWarp;
  const auto kv_heads = static_cast<uint32_t>(args.kv_heads), batch = static_cast<uint32_t>(args.batch);
  const uint32_t heads = batch * kv_heads, layers = static_cast<uint32_t>(args.layers);
  const uint32_t item = blockIdx.x * warps + threadIdx.x / kWarp;
  if (item >= 2 * layers * heads) return;
  const uint32_t array = item / heads, head = item % heads;
  const uint32_t layer = array < layers ? array : array - layers;
  const int64_t capacity = args.capacity[layer];
  const int64_t slot = args.slots[int64_t{layer} * heads + head];
  const int64_t last = args.last[int64_t{layer} * batch + head / kv_heads];
  if (slot < 0 || slot >= capacity || last < 0 || last >= capacity || slot == last) return;
  char* const row = static_cast<char*>(args.arrays[array]) + int64_t{head} * capacity * args.slot_bytes;
  const char* const source = row + last * args.slot_bytes;
  char* const target = row + slot * args.slot_bytes;
  if ((reinterpret_cast<uint64_t>(row) | static_cast<uint64_t>(args.slot_bytes)) % 16 == 0) {
    move_units<Moved>(source, target, args.slot_bytes);
  } else {
    move_units<uint16_t>(source, target, args.slot_bytes);
  }
}

}  // namespace vlkv::cuda
