// A thread's share of an array in global memory, with several of its loads in flight.
#pragma once

#include <cstdint>

namespace vlkv::cuda {

// Calls use(i, data[i]) for i = first, first + step, first + 2 * step, ... below end; kLoads of a thread's
// loads are in flight at a time.
template <int kLoads, class Element, class Index, class Use>
__device__ __forceinline__ void for_each_element(const Element* data, Index first, Index end, Index step,
                                                 Use use) {
  Index i = first;
  for (; i + (kLoads - 1) * step < end; i += kLoads * step) {
    Element value[kLoads];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) value[load] = data[i + load * step];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) use(i + load * step, value[load]);
  }
#pragma unroll 1
  for (; i < end; i += step) use(i, data[i]);
}

}  // namespace vlkv::cuda
