#include "cuda/device/evict_move.cuh"
#include "cuda/device/evict_parts.cuh"
#include "cuda/device/evict_select.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {
namespace {

// The grid covers groups of output slots for every head's keys and values.
void launch_move(void (*kernel)(EvictArgs), EvictArgs& args, int64_t row_units, CudaStream stream) {
  args.row_units = row_units;
  args.slot_groups = parts(args.capacity, kMoveSlots);
  const int64_t blocks = args.slot_groups * args.moves * args.batch * args.kv_heads;
  launch("evict", kernel, blocks, kMoveThreads, args, stream);
}

}  // namespace

void launch_evict_sum_heads(const EvictArgs& args, CudaStream stream) {
  launch("evict", evict_sum_heads, parts(args.batch * args.slots, kSumThreads), kSumThreads, args, stream);
}

void launch_evict_select(const EvictArgs& args, CudaStream stream) {
  const int64_t selections = args.batch * (args.per_head ? args.kv_heads : 1);
  if (args.parts <= 1) {
    launch("evict", evict_select, selections, kSelectThreads, args, stream);
    return;
  }
  for (const auto kernel : {evict_count, evict_collect, evict_write}) {
    launch("evict", kernel, selections * args.parts, kSelectThreads, args, stream);
  }
}

void launch_evict_gather(EvictArgs args, int64_t row_bytes, int64_t unit, CudaStream stream) {
  const auto kernel = unit == 16  ? evict_gather<Bytes16>
                      : unit == 4 ? evict_gather<uint32_t>
                                  : evict_gather<uint16_t>;
  launch_move(kernel, args, row_bytes / unit, stream);
}

template <class Type>
void launch_evict_merge(EvictArgs args, int64_t unit, CudaStream stream) {
  constexpr int kMost = 16 / sizeof(Type);
  if (unit == 16) {
    launch_move(evict_merge<Type, kMost>, args, args.head_dim / kMost, stream);
  } else {
    launch_move(evict_merge<Type, 1>, args, args.head_dim, stream);
  }
}

template void launch_evict_merge<float>(EvictArgs args, int64_t unit, CudaStream stream);
template void launch_evict_merge<Float16>(EvictArgs args, int64_t unit, CudaStream stream);
template void launch_evict_merge<BFloat16>(EvictArgs args, int64_t unit, CudaStream stream);

}  // namespace vlkv::cuda
