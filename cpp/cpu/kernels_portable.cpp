#define VLKV_KERNELS_NAMESPACE portable
#define VLKV_LANES 8
#define VLKV_ACCUMULATORS 4
#ifndef VLKV_TABLE
#define VLKV_TABLE kPortableKernels
#endif
#include "cpu/kernels.inl"
