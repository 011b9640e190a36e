// Pick: a block for each prompt; its threads keep the largest of every 512th logit each.
#pragma once

#include "cuda/device/loads.cuh"
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
  for_each_element<kPickLoads>(row, thread, vocab, uint32_t{kPickThreads},
                               [&](uint32_t id, float logit) { best = larger(best, pick_key(logit, id)); });
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
