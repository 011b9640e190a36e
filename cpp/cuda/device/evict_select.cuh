// Selects the slots to keep: a radix select on the scores' bits, one block per selection, on the scores' sum
// over heads if all heads share a selection.
#pragma once

#include "cuda/device/select.cuh"

namespace vlkv::cuda {

// Writes the slots of [begin, end) whose keys are above the threshold, and the first `ties` of those equal to
// it. Each warp has a range of slots: it counts, waits for the counts of earlier warps, and writes.
__device__ __forceinline__ void write_slots(SelectMemory& memory, const float* score, int64_t begin,
                                            int64_t end, uint32_t threshold, int32_t ties, int32_t* out) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int64_t stretch = parts(parts(end - begin, kSelectWarps), kWarp) * kWarp;
  const int64_t first = clamped(begin + warp * stretch, begin, end),
                last = clamped(first + stretch, begin, end);
  int32_t above = 0, equal = 0;
  for_each_key(score, first, last, lane, kWarp, [&](int64_t, uint32_t key) {
    above += key > threshold ? 1 : 0;
    equal += key == threshold ? 1 : 0;
  });
  above = __reduce_add_sync(kAllLanes, above);
  equal = __reduce_add_sync(kAllLanes, equal);
  if (lane == 0) {
    memory.warps[warp] = above;
    memory.ties[warp] = equal;
  }
  __syncthreads();
  int32_t above_before = 0, equal_before = 0;
  for (int other = 0; other < warp; ++other) {
    above_before += memory.warps[other];
    equal_before += memory.ties[other];
  }
  for (int64_t slot = first + lane; slot - lane < last; slot += kWarp) {
    const uint32_t key = slot < last ? ordered(__float_as_uint(score[slot])) : 0;
    const bool is_above = slot < last && key > threshold, is_equal = slot < last && key == threshold;
    const uint32_t lanes_above = __ballot_sync(kAllLanes, is_above);
    const uint32_t lanes_equal = __ballot_sync(kAllLanes, is_equal);
    const uint32_t lower = (1U << lane) - 1;
    const int32_t equal_here = equal_before + __popc(lanes_equal & lower);
    const int32_t above_here = above_before + __popc(lanes_above & lower);
    if (is_above || (is_equal && equal_here < ties)) {
      out[above_here + (equal_here < ties ? equal_here : ties)] = static_cast<int32_t>(slot);
    }
    above_before += __popc(lanes_above);
    equal_before += __popc(lanes_equal);
  }
}

inline constexpr int kSumThreads = 256;

// shared_score[b, c] = the sum over heads, in their order. One thread per element of [B, C].
__global__ void __launch_bounds__(kSumThreads) evict_sum_heads(const EvictArgs args) {
  const int64_t item = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (item >= args.batch * args.slots) return;
  const int64_t b = item / args.slots, slot = item % args.slots;
  if (slot >= keeping(args, b).length) return;
  const float* score = args.score + b * args.score_stride_b + slot;
  float sum = *score;
  for (int64_t h = 1; h < args.kv_heads; ++h) sum += score[h * args.score_stride_h];
  args.shared_score[item] = sum;
}

// One block per head of each prompt, or per prompt.
__global__ void __launch_bounds__(kSelectThreads, 1) evict_select(const EvictArgs args) {
  __shared__ SelectMemory memory;
  const int64_t selections = args.per_head ? args.kv_heads : 1;
  const int64_t b = blockIdx.x / selections, h = blockIdx.x % selections;
  const int64_t thread = threadIdx.x;
  const Keeping k = keeping(args, b);
  int32_t* const out = args.position + b * args.position_stride_b + h * args.position_stride_h;
  const int64_t before = k.all() ? k.keep : k.sinks;
  for (int64_t i = thread; i < before; i += kSelectThreads) out[i] = static_cast<int32_t>(i);
  if (!k.all()) {
    const float* const score = args.per_head ? args.score + b * args.score_stride_b + h * args.score_stride_h
                                             : args.shared_score + b * args.slots;
    for (int64_t i = thread; i < k.recent; i += kSelectThreads) {
      out[k.keep - k.recent + i] = static_cast<int32_t>(k.length - k.recent + i);
    }
    auto rank = static_cast<int32_t>(k.keep - k.sinks - k.recent);
    if (rank > 0) {
      const int64_t end = k.length - k.recent;
      const uint32_t threshold = find_threshold(memory, score, k.sinks, end, rank);
      write_slots(memory, score, k.sinks, end, threshold, rank, out + k.sinks);
    }
  }
  if (args.zero_tail) {
    for (int64_t i = k.keep + thread; i < args.capacity; i += kSelectThreads) out[i] = -1;
  }
  if (args.per_head) return;
  __syncthreads();
  const int64_t written = args.zero_tail ? args.capacity : k.keep;
  for (int64_t other = 1; other < args.kv_heads; ++other) {
    for (int64_t i = thread; i < written; i += kSelectThreads)
      out[other * args.position_stride_h + i] = out[i];
  }
}

}  // namespace vlkv::cuda
