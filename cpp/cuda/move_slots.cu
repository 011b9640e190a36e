#include "cuda/device/move_slots.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

void launch_move_slots(const MoveArgs& args, CudaStream stream) {
  const int64_t warps = 2 * args.layers * args.batch * args.kv_heads;
  launch("move_slots", move_slots, parts(warps, kMoveSlotThreads / kWarp), kMoveSlotThreads, args, stream);
}

}  // namespace vlkv::cuda
