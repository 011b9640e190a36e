// The two opaque handles of CUDA that TensorRT's headers need. The plugin and its driver call no CUDA
// function, so they compile without the toolkit.
#pragma once

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
