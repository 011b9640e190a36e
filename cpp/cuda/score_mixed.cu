#include "cuda/score_launch.cuh"

namespace vlkv::cuda {

template void launch_score_rows<AnyType>(ScoreArgs args, CudaStream stream);
template void launch_score_columns<AnyType>(ScoreArgs args, CudaStream stream);

}  // namespace vlkv::cuda
