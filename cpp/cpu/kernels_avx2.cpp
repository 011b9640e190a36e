#define VLKV_KERNELS_NAMESPACE avx2
#define VLKV_LANES 8
#define VLKV_ACCUMULATORS 12
#ifndef VLKV_TABLE
#define VLKV_TABLE kAvx2Kernels
#endif
#include "cpu/kernels.inl"
