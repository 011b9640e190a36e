#include "vlkv/cuda.h"

namespace vlkv {

bool has_cuda() { return false; }

void run_cuda(const ScoreParams& params, void*, CudaStream) {
  validate(params);
  throw Unavailable("[score] this build has no CUDA; configure with -DVLKV_CUDA=ON");
}

}  // namespace vlkv
