// Moves of cache rows: gathering kept slots, merging evicted ones into them, clearing the tail.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "vlkv/types.h"

namespace vlkv::cpu {

// The rows [slots, dim] of one head.
struct HeadRows {
  const char* from = nullptr;
  char* to = nullptr;
  int64_t from_stride = 0, to_stride = 0;  // bytes
  int64_t dim = 0;
  DType dtype = DType::kFloat32;
};

// to[i] = from[slots[i]] for i in [begin, end). slots ascends.
void gather(const HeadRows& rows, const int32_t* slots, int64_t begin, int64_t end);

// to[i] = mean of the tokens nearest to slots[i], ties going to the lower slot, for i in [begin, end) of
// `kept` slots; tokens are [0, length). `scratch` holds 2 * dim floats.
void merge(const HeadRows& rows, const int32_t* slots, int64_t begin, int64_t end, int64_t kept,
           int64_t length, const Kernels& kernels, float* scratch);

// to[i] = 0 for i in [begin, end).
void clear(const HeadRows& rows, int64_t begin, int64_t end);

}  // namespace vlkv::cpu
