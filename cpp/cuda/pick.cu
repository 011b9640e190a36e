#include "cuda/device/pick.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

void launch_pick(const PickArgs& args, int64_t batch, CudaStream stream) {
  launch("pick", pick, batch, kPickThreads, args, stream);
}

}  // namespace vlkv::cuda
