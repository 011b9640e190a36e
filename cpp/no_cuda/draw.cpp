#include "vlkv/cuda.h"

namespace vlkv {

void run_cuda(const DrawParams& params, CudaStream) {
  validate(params);
  throw Unavailable("[draw] this build has no CUDA; configure with -DVLKV_CUDA=ON");
}

}  // namespace vlkv
