// Pick: a block for each prompt; its threads keep the largest of every 512th logit each.
#pragma once

#include "cuda/device/pick_args.cuh"
#include "cuda/device/pick_key.cuh"

namespace vlkv::cuda {

inline constexpr int kPickThreads = 512;
// In flight for each thread: a block alone has to fill the memory's latency.
inline constexpr int kPickLoads = 8;

__global__ void __launch_bounds__(kPickThreads) pick(const PickArgs args) {
  __shared__ uint64_t warps[kPickThreads / kWarp];
  const auto thread = static_cast<uint32_t>(threadIdx.x), vocab = static_cast<uint32_t>(args.vocab);
  const float* const row = args.logits + int64_t{blockIdx.x} * args.vocab;
  uint64_t best = 0;
  uint32_t id = thread;
  for (; id + (kPickLoads - 1) * kPickThreads < vocab; id += kPickLoads * kPickThreads) {
    float logit[kPickLoads];
#pragma unroll
    for (uint32_t i = 0; i < kPickLoads; ++i) logit[i] = row[id + i * kPickThreads];
#pragma unroll
    for (uint32_t i = 0; i < kPickLoads; ++i) best = larger(best, pick_key(logit[i], id + i * kPickThreads));
  }
  for (; id < vocab; id += kPickThreads) best = larger(best, pick_key(row[id], id));
  best = largest_of_lanes(best);
  if (thread % kWarp == 0) warps[thread / kWarp] = best;
  __syncthreads();
  if (thread >= kWarp) return;
  best = largest_of_lanes(thread < kPickThreads / kWarp ? warps[thread] : 0);
  if (thread != 0) return;
  const uint32_t token = 0xffffffffU - static_cast<uint32_t>(best);
  args.token[blockIdx.x] = static_cast<int32_t>(token);
  args.best[blockIdx.x] = row[token];
}

}  // namespace vlkv::cuda
