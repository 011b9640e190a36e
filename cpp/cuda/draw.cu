#include "cuda/device/draw.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

void launch_draw(const DrawArgs& args, int64_t batch, CudaStream stream) {
  launch("draw", draw, batch, kDrawThreads, args, stream);
}

}  // namespace vlkv::cuda
