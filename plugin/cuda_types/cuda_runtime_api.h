// What TensorRT's headers take from CUDA's: two opaque handles. The plugin and its driver call nothing of
// CUDA themselves, so they compile without the toolkit.
#pragma once

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
