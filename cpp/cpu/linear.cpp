#include "vlkv/linear.h"

#include <algorithm>

#include "core/check.h"
#include "cpu/kernels.h"
#include "cpu/linear_many.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"

namespace vlkv {
namespace cpu {

Weights weights_of(const LinearParams& p, const LinearProduct& product) {
  const int64_t blocks = p.block > 0 ? (p.depth + p.block - 1) / p.block : 0;
  return {p.format,       p.scale_type,   p.depth,       p.block,         blocks,
          product.weight, product.scales, product.zeros, product.minimums};
}

bool as_they_are(const LinearParams& p) {
  return p.norm == nullptr && p.gated == nullptr && !evens_first(p.format) &&
         whole_groups(p.depth) == p.depth;
}

void prepare_row(const LinearParams& p, int64_t r, float* space, float* to) {
  const LinearKernels& linear = kernels().linear;
  const float* row = p.input + r * p.depth;
  if (p.norm != nullptr) {
    linear.normalize(row, p.norm, p.epsilon, p.depth, space);
    row = space;
  } else if (p.gated != nullptr) {
    linear.gate(row, p.gated + r * p.depth, p.depth, space);
    row = space;
  }
  linear.arrange(row, p.depth, p.format, to);
}

}  // namespace cpu

namespace {

// Bytes of weights that a thread takes at a time.
constexpr int64_t kPartBytes = int64_t{VLKV_LINEAR_PART_KIB} << 10;
constexpr int64_t kParallelBytes = int64_t{1} << 17;  // fewer bytes of weights are read by one thread
constexpr int64_t kPartColumns = 16;                  // the columns of a part are a multiple of this

// The division of a product's columns into parts; `first` is the number of its first part.
struct Split {
  int64_t first, columns;
};

struct FewCall {
  const LinearParams& p;
  const float* input;
  int64_t stride;
  const Split* splits;

  void run(int64_t part) const {
    int64_t i = 0;
    while (i + 1 < p.count && part >= splits[i + 1].first) ++i;
    const LinearProduct& product = p.products[i];
    cpu::FewRows few;
    few.weights = cpu::weights_of(p, product);
    few.column = (part - splits[i].first) * splits[i].columns;
    few.columns = static_cast<int>(std::min(splits[i].columns, product.columns - few.column));
    few.rows = static_cast<int>(p.rows), few.input = input, few.stride = stride;
    few.bias = product.bias, few.residual = product.residual, few.result = product.result,
    few.result_stride = product.columns;
    cpu::kernels().linear.multiply_few(few);
  }
};

int64_t part_columns(const LinearParams& p) {
  const int64_t column = std::max<int64_t>(weight_bytes(p, 1), 1);
  return std::max<int64_t>(1, kPartBytes / (column * kPartColumns)) * kPartColumns;
}

void run_few(const LinearParams& p, const float* input, int64_t stride, const cpu::Runner& runner) {
  const auto splits = cpu::allocate<Split>(p.count);
  int64_t parts = 0, bytes = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t columns = part_columns(p);
    splits[static_cast<size_t>(i)] = {parts, columns};
    parts += (p.products[i].columns + columns - 1) / columns;
    bytes += weight_bytes(p, p.products[i].columns);
  }
  const FewCall call{p, input, stride, splits.get()};
  runner.run(parts, bytes * p.rows >= kParallelBytes, [&](int64_t part) { call.run(part); });
}

// The stride of arranged rows, in floats. Rows a multiple of a page apart would evict each other from the
// first-level cache.
int64_t input_stride(const LinearParams& p) {
  constexpr int64_t kPageFloats = 1024, kLine = 16;
  const int64_t whole = cpu::whole_groups(p.depth);
  return p.rows > 1 && whole % kPageFloats == 0 ? whole + kLine : whole;
}

}  // namespace

bool bfloat16_products() { return cpu::kernels().linear.multiply_half != nullptr; }

void run_cpu(const LinearParams& p, const Loop& loop) {
  validate(p);
  if (p.rows == 0 || p.count == 0) return;
  const cpu::Runner runner{loop, p.threads};
  const int64_t stride = input_stride(p);
  if (p.rows > LinearParams::kFewRows) return cpu::run_many(p, runner);
  if (stride == p.depth && cpu::as_they_are(p)) return run_few(p, p.input, stride, runner);
  const auto rows = cpu::allocate<float>(p.rows * stride + p.depth);
  float* space = rows.get() + p.rows * stride;
  for (int64_t r = 0; r < p.rows; ++r) cpu::prepare_row(p, r, space, rows.get() + r * stride);
  run_few(p, rows.get(), stride, runner);
}

}  // namespace vlkv
