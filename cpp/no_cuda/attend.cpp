#include "vlkv/cuda.h"

namespace vlkv {

void run_cuda(const AttendRowsParams& params, void*, CudaStream) {
  validate(params);
  throw Unavailable("[attend] this build has no CUDA; configure with -DVLKV_CUDA=ON");
}

}  // namespace vlkv
