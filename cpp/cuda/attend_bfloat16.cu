#include "cuda/attend_launch.cuh"

namespace vlkv::cuda {

template void launch_attend_rows<BFloat16>(const AttendArgs& args, bool few, CudaStream stream);
template void launch_attend_join<BFloat16>(const AttendArgs& args, CudaStream stream);

}  // namespace vlkv::cuda
