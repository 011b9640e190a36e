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

bool in_fixed16(const LinearParams& p) {
  const bool codes = p.format == WeightFormat::kInt8 || p.format == WeightFormat::kInt4;
  const bool asked = p.precision == Precision::kFixed16 ||
                     (p.precision == Precision::kBFloat16 && p.rows <= LinearParams::kFewRows);
  return codes && asked && kernels().linear.fixed != nullptr;
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

// The rows of a call, arranged; and in fixed point those that are so multiplied.
struct Rows {
  const float* input = nullptr;
  int64_t stride = 0;
  const char* fixed = nullptr;  // or null
  int64_t fixed_stride = 0;     // bytes
  const bool* in_fixed = nullptr;
};

struct FewCall {
  const LinearParams& p;
  const Rows& rows;
  const Split* splits;

  void run(int64_t part) const {
    int64_t i = 0;
    while (i + 1 < p.count && part >= splits[i + 1].first) ++i;
    const LinearProduct& product = p.products[i];
    cpu::FewRows few;
    few.weights = cpu::weights_of(p, product);
    few.column = (part - splits[i].first) * splits[i].columns;
    few.columns = static_cast<int>(std::min(splits[i].columns, product.columns - few.column));
    few.stride = rows.stride, few.fixed_stride = rows.fixed_stride, few.bias = product.bias;
    few.result_stride = product.columns;
    // Neighbours of a kind together.
    for (int64_t row = 0, end = 0; row < p.rows; row = end) {
      for (end = row + 1; end < p.rows && is_fixed(end) == is_fixed(row);) ++end;
      few.rows = static_cast<int>(end - row);
      few.input = rows.input + row * rows.stride;
      few.residual = product.residual == nullptr ? nullptr : product.residual + row * product.columns;
      few.result = product.result + row * product.columns;
      if (is_fixed(row)) {
        few.fixed = rows.fixed + row * rows.fixed_stride;
        cpu::kernels().linear.fixed->multiply_few(few);
      } else {
        cpu::kernels().linear.multiply_few(few);
      }
    }
  }

  bool is_fixed(int64_t row) const { return rows.fixed != nullptr && rows.in_fixed[row]; }
};

int64_t part_columns(const LinearParams& p) {
  const int64_t column = std::max<int64_t>(weight_bytes(p, 1), 1);
  return std::max<int64_t>(1, kPartBytes / (column * kPartColumns)) * kPartColumns;
}

void run_few(const LinearParams& p, const Rows& rows, const cpu::Runner& runner) {
  const auto splits = cpu::allocate<Split>(p.count);
  int64_t parts = 0, bytes = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t columns = part_columns(p);
    splits[static_cast<size_t>(i)] = {parts, columns};
    parts += (p.products[i].columns + columns - 1) / columns;
    bytes += weight_bytes(p, p.products[i].columns);
  }
  const FewCall call{p, rows, splits.get()};
  runner.run(parts, bytes * p.rows >= kParallelBytes, [&](int64_t part) { call.run(part); });
}

// The stride of rows of so many bytes. Rows a multiple of a page apart would evict each other from the
// first-level cache.
int64_t stride_of(const LinearParams& p, int64_t bytes) {
  constexpr int64_t kPage = 4096, kLine = 64;
  return p.rows > 1 && bytes % kPage == 0 ? bytes + kLine : bytes;
}

}  // namespace

bool bfloat16_products() { return cpu::kernels().linear.multiply_half != nullptr; }

bool fixed16_products() { return cpu::kernels().linear.fixed != nullptr; }

void run_cpu(const LinearParams& p, const Loop& loop) {
  validate(p);
  if (p.rows == 0 || p.count == 0) return;
  const cpu::Runner runner{loop, p.threads};
  if (p.rows > LinearParams::kFewRows) return cpu::run_many(p, runner);
  Rows rows;
  rows.stride = stride_of(p, cpu::whole_groups(p.depth) * 4) / 4;
  const bool as_given = rows.stride == p.depth && cpu::as_they_are(p), fixed = cpu::in_fixed16(p);
  if (fixed) rows.fixed_stride = stride_of(p, cpu::fixed_row(p.depth).bytes());
  const auto arranged = cpu::allocate<float>(as_given ? 0 : p.rows * rows.stride + p.depth);
  const auto digits = cpu::allocate<char>(p.rows * rows.fixed_stride);
  float* space = arranged.get() + p.rows * rows.stride;
  for (int64_t r = 0; r < p.rows && !as_given; ++r) {
    cpu::prepare_row(p, r, space, arranged.get() + r * rows.stride);
  }
  rows.input = as_given ? p.input : arranged.get();
  bool in_fixed[LinearParams::kFewRows];
  for (int64_t r = 0; r < p.rows && fixed; ++r) {
    in_fixed[r] = cpu::kernels().linear.fixed->round(rows.input + r * rows.stride, p.depth, p.format,
                                                     digits.get() + r * rows.fixed_stride);
  }
  if (fixed) rows.fixed = digits.get(), rows.in_fixed = in_fixed;
  run_few(p, rows, runner);
}

}  // namespace vlkv
