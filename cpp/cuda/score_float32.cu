#include "cuda/score_launch.cuh"

namespace vlkv::cuda {

template void launch_score_rows<float>(ScoreArgs args, CudaStream stream);
template void launch_score_columns<float>(ScoreArgs args, CudaStream stream);

}  // namespace vlkv::cuda
