// The CUDA backend, compiled for the host: its run_cuda() takes the place of the library's.
// clang-format off
#include "emulation.h"
// clang-format on
#include "cuda/attend_append.cu"
#include "cuda/attend_bfloat16.cu"
#include "cuda/attend_float16.cu"
#include "cuda/draw.cu"
#include "cuda/evict.cu"
#include "cuda/move_slots.cu"
#include "cuda/pick.cu"
#include "cuda/score_bfloat16.cu"
#include "cuda/score_counts.cu"
#include "cuda/score_float16.cu"
#include "cuda/score_float32.cu"
#include "cuda/score_mixed.cu"
