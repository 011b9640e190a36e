#define VLKV_KERNELS_NAMESPACE portable
#define VLKV_LANES 8
#define VLKV_ACCUMULATORS 4
#define VLKV_TABLE kPortableKernels
#include "cpu/kernels.inl"
