#include "cuda/score_launch.cuh"

namespace vlkv::cuda {

template void launch_score_rows<Float16>(ScoreArgs args, CudaStream stream);
template void launch_score_columns<Float16>(ScoreArgs args, CudaStream stream);

}  // namespace vlkv::cuda
