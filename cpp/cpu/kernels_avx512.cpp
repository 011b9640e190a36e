#define VLKV_KERNELS_NAMESPACE avx512
#define VLKV_LANES 16
#define VLKV_ACCUMULATORS 24
#ifndef VLKV_TABLE
#define VLKV_TABLE kAvx512Kernels
#endif
#include "cpu/kernels.inl"
