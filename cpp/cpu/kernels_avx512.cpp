#define VLKV_KERNELS_NAMESPACE avx512
#define VLKV_LANES 16
#define VLKV_ACCUMULATORS 24
#define VLKV_TABLE kAvx512Kernels
#include "cpu/kernels.inl"
