#include "cpu/cache_copy.h"

#include <algorithm>
#include <cstring>

namespace vlkv::cpu {
namespace {

constexpr int64_t kAhead = VLKV_EVICT_AHEAD;  // rows that are prefetched before the copy
constexpr int64_t kLine = 64;

size_t row_bytes(const HeadRows& rows) { return static_cast<size_t>(vlkv::row_bytes(rows.dtype, rows.dim)); }

void prefetch(const char* row, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at);
}

}  // namespace

void gather(const HeadRows& rows, const int32_t* slots, int64_t begin, int64_t end) {
  const size_t bytes = row_bytes(rows);
  const bool dense = rows.from_stride == static_cast<int64_t>(bytes) && rows.to_stride == rows.from_stride;
  for (int64_t i = begin; i < end;) {
    int64_t run = 1;
    while (dense && i + run < end && slots[i + run] == slots[i] + run) ++run;
    if (i + kAhead < end) prefetch(rows.from + slots[i + kAhead] * rows.from_stride, bytes);
    std::memcpy(rows.to + i * rows.to_stride, rows.from + slots[i] * rows.from_stride,
                bytes * static_cast<size_t>(run));
    i += run;
  }
}

void merge(const HeadRows& rows, const int32_t* slots, int64_t begin, int64_t end, int64_t kept,
           int64_t length, const Kernels& kernels, float* scratch) {
  float* sum = scratch;
  float* line = scratch + rows.dim;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t low = i == 0 ? 0 : (int64_t{slots[i - 1]} + slots[i]) / 2 + 1;
    const int64_t high = i + 1 == kept ? length : (int64_t{slots[i]} + slots[i + 1]) / 2 + 1;
    char* to = rows.to + i * rows.to_stride;
    if (high - low == 1) {
      std::memcpy(to, rows.from + low * rows.from_stride, row_bytes(rows));
      continue;
    }
    kernels.to_float(rows.from + low * rows.from_stride, rows.dtype, sum, rows.dim);
    for (int64_t token = low + 1; token < high; ++token) {
      const char* from = rows.from + token * rows.from_stride;
      if (rows.dtype == DType::kFloat32) {
        kernels.add(reinterpret_cast<const float*>(from), sum, rows.dim);
      } else {
        kernels.to_float(from, rows.dtype, line, rows.dim);
        kernels.add(line, sum, rows.dim);
      }
    }
    const auto tokens = static_cast<float>(high - low);
    for (int64_t d = 0; d < rows.dim; ++d) sum[d] /= tokens;
    kernels.from_float(sum, rows.dtype, to, rows.dim);
  }
}

void clear(const HeadRows& rows, int64_t begin, int64_t end) {
  const size_t bytes = row_bytes(rows);
  if (rows.to_stride == static_cast<int64_t>(bytes) && end > begin) {
    std::memset(rows.to + begin * rows.to_stride, 0, bytes * static_cast<size_t>(end - begin));
    return;
  }
  for (int64_t i = begin; i < end; ++i) std::memset(rows.to + i * rows.to_stride, 0, bytes);
}

}  // namespace vlkv::cpu
