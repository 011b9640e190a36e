// Draw on a CUDA device.
#include "vlkv/draw.h"

#include "cuda/launchers.h"

namespace vlkv {

void run_cuda(const DrawParams& p, CudaStream stream) {
  validate(p);
  if (p.batch == 0) return;
  cuda::launch_draw({p.vocab, p.logits, &p.settings->temperature, p.token, p.best}, p.batch, stream);
}

}  // namespace vlkv
