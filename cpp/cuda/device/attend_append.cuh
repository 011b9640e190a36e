// The first kernel of Attend: writes new keys and values to their slots.
#pragma once

#include "cuda/device/attend_args.cuh"

namespace vlkv::cuda {

inline constexpr int kAppendThreads = 256;

struct alignas(16) Appended {
  uint32_t word[4];
};

// One thread per 16 bytes of [2, B, Hkv, S, D]: keys, then values.
__global__ void __launch_bounds__(kAppendThreads) attend_append(const AttendArgs args) {
  const int64_t units = args.head_dim / 8, rows = args.batch * args.kv_heads * args.rows;
  int64_t item = int64_t{blockIdx.x} * kAppendThreads + threadIdx.x;
  if (item >= 2 * rows * units) return;
  const bool values = item >= rows * units;
  item -= values ? rows * units : 0;
  const int64_t unit = item % units, row = item / units % args.rows, head = item / units / args.rows;
  const int64_t b = head / args.kv_heads, h = head % args.kv_heads;
  const Extent prompt = extent(args, b);
  if (row >= prompt.count) return;
  const CacheView &from = values ? args.value : args.key, &to = values ? args.value_cache : args.key_cache;
  const char* const source = head_of<uint16_t>(from, b, h) + row * from.stride_s * kAttendBytes;
  char* const target =
      const_cast<char*>(head_of<uint16_t>(to, b, h)) + (prompt.length + row) * to.stride_s * kAttendBytes;
  reinterpret_cast<Appended*>(target)[unit] = reinterpret_cast<const Appended*>(source)[unit];
}

}  // namespace vlkv::cuda
