// MoveSlots on a CUDA device.
#include "vlkv/move_slots.h"

#include "cuda/launchers.h"

namespace vlkv {

void run_cuda(const MoveSlotsParams& p, CudaStream stream) {
  validate(p);
  if (p.batch == 0) return;
  cuda::launch_move_slots(
      {p.layers, p.batch, p.kv_heads, p.slot_bytes, p.arrays, p.capacity, p.slots, p.last}, stream);
}

}  // namespace vlkv
