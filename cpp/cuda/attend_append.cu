#include "cuda/device/attend_append.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

void launch_attend_append(const AttendArgs& args, CudaStream stream) {
  const int64_t items = 2 * args.batch * args.kv_heads * args.rows * (args.head_dim / 8);
  launch("attend", attend_append, parts(items, kAppendThreads), kAppendThreads, args, stream);
}

}  // namespace vlkv::cuda
