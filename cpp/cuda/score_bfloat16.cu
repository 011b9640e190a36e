#include "cuda/score_launch.cuh"

namespace vlkv::cuda {

template void launch_score_rows<BFloat16>(ScoreArgs args, CudaStream stream);
template void launch_score_columns<BFloat16>(ScoreArgs args, CudaStream stream);

}  // namespace vlkv::cuda
