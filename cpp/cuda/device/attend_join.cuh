// The last kernel of Attend: combines the splits of a row.
#pragma once

#include "cuda/device/attend_args.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/softmax.cuh"

namespace vlkv::cuda {

inline constexpr int kJoinThreads = 128;

// One block per row of [B, Hkv, group_rows]. A split without keys has a sum of 0 and is skipped.
template <class Type>
__global__ void __launch_bounds__(kJoinThreads) attend_join(const AttendArgs args) {
  const int64_t r = blockIdx.x % args.group_rows, head = blockIdx.x / args.group_rows;
  const int64_t b = head / args.kv_heads, h = head % args.kv_heads;
  const int64_t offset = group_row(args.result, static_cast<uint32_t>(args.group), r);
  char* const to = const_cast<char*>(head_of<Type>(args.result, b, h * args.group)) + offset;
  const bool padding = r >= extent(args, b).count * args.group;
  const int64_t first = head * args.splits * args.group_rows + r;
  float maximum = -kLargest;
  for (int64_t split = 0; !padding && split < args.splits; ++split) {
    maximum = fmaxf(maximum, args.maximum[first + split * args.group_rows]);
  }
  const float scaled = scaled_maximum(maximum, args.factor);
  for (int64_t d = threadIdx.x; d < args.head_dim; d += kJoinThreads) {
    float sum = padding ? 1.0F : 0.0F, mean = 0.0F;
    for (int64_t split = 0; !padding && split < args.splits; ++split) {
      const int64_t at = first + split * args.group_rows;
      const float part = args.sum[at];
      if (part == 0.0F) continue;
      const float kept = exp2_flushed(scaled_maximum(args.maximum[at], args.factor) - scaled);
      sum += part * kept;
      mean += args.partial[at * args.head_dim + d] * kept;
    }
    from_float(mean / sum, reinterpret_cast<Type*>(to)[d]);
  }
}

}  // namespace vlkv::cuda
