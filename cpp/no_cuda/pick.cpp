#include "vlkv/cuda.h"

namespace vlkv {

void run_cuda(const PickParams& params, CudaStream) {
  validate(params);
  throw Unavailable("[pick] this build has no CUDA; configure with -DVLKV_CUDA=ON");
}

}  // namespace vlkv
