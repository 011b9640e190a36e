#include "vlkv/cuda.h"

namespace vlkv {

void run_cuda(const EvictParams& params, void*, CudaStream) {
  validate(params);
  throw Unavailable("[evict] this build has no CUDA; configure with -DVLKV_CUDA=ON");
}

}  // namespace vlkv
