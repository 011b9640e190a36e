#include "cuda/device/score_counts.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

void launch_score_combine(const ScoreArgs& args, CudaStream stream) {
  launch("score", score_combine, args.row_blocks * args.batch * args.kv_heads, kWarp, args, stream);
}

void launch_score_clear(const ScoreArgs& args, CudaStream stream) {
  const int64_t items = args.batch * args.kv_heads * args.slots;
  launch("score", score_clear, parts(items, kCountThreads), kCountThreads, args, stream);
}

void launch_score_counts(const ScoreArgs& args, CudaStream stream) {
  launch("score", score_counts, args.batch, kCountThreads, args, stream);
}

}  // namespace vlkv::cuda
