// The code that AVX-512 runs, sixteen lanes and 24 accumulators, compiled for any processor.
#define VLKV_KERNELS_NAMESPACE wide
#define VLKV_LANES 16
#define VLKV_ACCUMULATORS 24
#define VLKV_TABLE kWideKernels
#include "cpu/kernels.inl"
