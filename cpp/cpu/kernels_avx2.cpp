#define VLKV_KERNELS_NAMESPACE avx2
#define VLKV_LANES 8
#define VLKV_ACCUMULATORS 12
#define VLKV_TABLE kAvx2Kernels
#include "cpu/kernels.inl"
