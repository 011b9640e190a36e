// Pick on a CUDA device.
#include "vlkv/pick.h"

#include "cuda/launchers.h"

namespace vlkv {

void run_cuda(const PickParams& p, CudaStream stream) {
  validate(p);
  if (p.batch == 0) return;
  cuda::launch_pick({p.vocab, p.logits, p.token, p.best}, p.batch, stream);
}

}  // namespace vlkv
