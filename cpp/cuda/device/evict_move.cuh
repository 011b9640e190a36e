// Moves keys and values to their new slots: copies, or means over the tokens of each slot.
#pragma once

#include "cuda/device/evict_args.cuh"
#include "cuda/device/ptx.cuh"

namespace vlkv::cuda {

inline constexpr int kMoveThreads = 256, kMoveSlots = 64, kUnderWay = 4;

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

// The work of one block: up to kMoveSlots slots of one head's keys or values.
struct Move {
  const char* from;
  char* to;
  int64_t from_stride, to_stride;
  const int32_t* slots;
  Keeping keeping;
  int64_t first, end;  // slots of the new cache; those from keeping.keep on are zeroed
};

// Grid: groups of slots (fastest), then keys and values, then B * Hkv.
__device__ __forceinline__ Move block_move(const EvictArgs& a, int64_t block) {
  const int64_t group = block % a.slot_groups, which = block / a.slot_groups % a.moves;
  const int64_t head = block / a.slot_groups / a.moves, b = head / a.kv_heads, h = head % a.kv_heads;
  const MovedRows& rows = a.moved[which];
  const Keeping k = keeping(a, b);
  const int64_t written = a.zero_tail ? a.capacity : k.keep;
  const int64_t end = (group + 1) * kMoveSlots;
  return {rows.from + b * rows.from_stride_b + h * rows.from_stride_h,
          rows.to + b * rows.to_stride_b + h * rows.to_stride_h,
          rows.from_stride_s,
          rows.to_stride_s,
          a.position + b * a.position_stride_b + h * a.position_stride_h,
          k,
          group * kMoveSlots,
          end < written ? end : written};
}

// Unit: the type that a thread copies at a time; rows and addresses are multiples of its size.
template <class Unit>
__global__ void __launch_bounds__(kMoveThreads) evict_gather(const EvictArgs args) {
  const Move move = block_move(args, blockIdx.x);
  const auto units = static_cast<uint32_t>(args.row_units);
  const auto items = static_cast<uint32_t>(clamped(move.end - move.first, 0, kMoveSlots)) * units;
  for (uint32_t begin = threadIdx.x; begin < items; begin += kMoveThreads * kUnderWay) {
    Unit unit[kUnderWay];
#pragma unroll
    for (uint32_t i = 0; i < kUnderWay; ++i) {
      const uint32_t item = begin + i * kMoveThreads;
      const int64_t slot = move.first + item / units;
      unit[i] = Unit{};
      if (item < items && slot < move.keeping.keep) {
        unit[i] =
            reinterpret_cast<const Unit*>(move.from + move.slots[slot] * move.from_stride)[item % units];
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < kUnderWay; ++i) {
      const uint32_t item = begin + i * kMoveThreads;
      if (item < items) {
        reinterpret_cast<Unit*>(move.to + (move.first + item / units) * move.to_stride)[item % units] =
            unit[i];
      }
    }
  }
}

template <class Type, int kElements>
struct alignas(sizeof(Type) * kElements) Elements {
  Type element[kElements];
};

// Like evict_gather, but each slot is the mean of its tokens, summed in order in float32. A thread has
// kElements of a row.
template <class Type, int kElements>
__global__ void __launch_bounds__(kMoveThreads) evict_merge(const EvictArgs args) {
  using Unit = Elements<Type, kElements>;
  const Move move = block_move(args, blockIdx.x);
  const auto units = static_cast<uint32_t>(args.row_units);
  const auto items = static_cast<uint32_t>(clamped(move.end - move.first, 0, kMoveSlots)) * units;
  for (uint32_t item = threadIdx.x; item < items; item += kMoveThreads) {
    const int64_t slot = move.first + item / units;
    const auto token = [&](int64_t index) {
      return reinterpret_cast<const Unit*>(move.from + index * move.from_stride)[item % units];
    };
    Unit out{};
    if (slot < move.keeping.keep) {
      const Span span = move.keeping.all()
                            ? Span{slot, slot + 1}
                            : nearest_to(move.slots, slot, move.keeping.keep, move.keeping.length);
      out = token(span.first);
      if (span.end - span.first > 1) {
        float sum[kElements];
#pragma unroll
        for (int e = 0; e < kElements; ++e) sum[e] = to_float(out.element[e]);
#pragma unroll 4
        for (int64_t index = span.first + 1; index < span.end; ++index) {
          const Unit next = token(index);
#pragma unroll
          for (int e = 0; e < kElements; ++e) sum[e] += to_float(next.element[e]);
        }
        const auto tokens = static_cast<float>(span.end - span.first);
#pragma unroll
        for (int e = 0; e < kElements; ++e) from_float(sum[e] / tokens, out.element[e]);
      }
    }
    reinterpret_cast<Unit*>(move.to + slot * move.to_stride)[item % units] = out;
  }
}

}  // namespace vlkv::cuda
