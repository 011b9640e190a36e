// What MoveSlots' kernel takes; vlkv/move_slots.h says what the fields are.
#pragma once

#include "cuda/device/types.cuh"

namespace vlkv::cuda {

struct MoveArgs {
  int64_t layers, batch, kv_heads, slot_bytes;
  void* const* arrays;
  const int64_t *capacity, *slots, *last;
};

}  // namespace vlkv::cuda
