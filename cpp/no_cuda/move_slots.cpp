#include "vlkv/cuda.h"

namespace vlkv {

void run_cuda(const MoveSlotsParams& params, CudaStream) {
  validate(params);
  throw Unavailable("[move_slots] this build has no CUDA; configure with -DVLKV_CUDA=ON");
}

}  // namespace vlkv
