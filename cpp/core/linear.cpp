#include "vlkv/linear.h"

#include <cmath>

#include "core/check.h"

namespace vlkv {
namespace {

bool in_blocks(WeightFormat format) { return format == WeightFormat::kInt8 || format == WeightFormat::kInt4; }

void validate(const Check& check, const LinearParams& p, const LinearProduct& product) {
  check.range("columns", product.columns, 0, kLargestDim);
  const bool reads = p.rows > 0 && product.columns > 0;
  check.require(product.weight != nullptr || !reads, "weight is null");
  check.require(product.result != nullptr || !reads, "result is null");
  check.require(product.scales != nullptr || !reads || !in_blocks(p.format), "scales is null");
  check.require(product.scales == nullptr || in_blocks(p.format), "weights that are floats have no scales");
  check.require(product.zeros == nullptr || p.format == WeightFormat::kInt4,
                "weights that are not of 4 bits have no zeros");
  check.require(product.minimums == nullptr || (in_blocks(p.format) && product.zeros == nullptr),
                "minimums go with weights of 4 or 8 bits without zeros");
}

}  // namespace

int64_t weight_bytes(const LinearParams& p, int64_t columns) {
  const int64_t blocks = p.block > 0 ? (p.depth + p.block - 1) / p.block : 0;
  switch (p.format) {
    case WeightFormat::kFloat32:
      return columns * p.depth * 4;
    case WeightFormat::kFloat16:
    case WeightFormat::kBFloat16:
      return columns * p.depth * 2;
    case WeightFormat::kInt8:
      return columns * blocks * p.block;
    case WeightFormat::kInt4:
      return columns * blocks * p.block / 2;
  }
  return 0;
}

void validate(const LinearParams& p) {
  const Check check("linear");
  check.range("rows", p.rows, 0, kLargestDim);
  check.range("depth", p.depth, 1, kLargestDim);
  check.range("format", static_cast<int64_t>(p.format), 0, 4);
  check.range("precision", static_cast<int64_t>(p.precision), 0, 2);
  if (in_blocks(p.format)) {
    check.range("block", p.block, 32, 65536);
    check.require(p.block % 32 == 0, "block is ", p.block, ", not a multiple of 32");
    check.require(p.scale_type == DType::kFloat32 || p.scale_type == DType::kFloat16, "scales have dtype ",
                  static_cast<int32_t>(p.scale_type), ", not float32 (0) or float16 (1)");
  } else {
    check.require(p.block == 0, "weights that are floats have no block, not one of ", p.block);
  }
  check.require(p.input != nullptr || p.rows == 0, "input is null");
  check.require(p.norm == nullptr || p.gated == nullptr, "norm and gated do not go together");
  check.require(p.epsilon >= 0.0F && std::isfinite(p.epsilon), "epsilon is ", p.epsilon,
                ", not a finite number of at least 0");
  check.range("products", p.count, 0, 1024);
  check.require(p.products != nullptr || p.count == 0, "products is null");
  for (int64_t i = 0; i < p.count; ++i) validate(check, p, p.products[i]);
  check.threads(p.threads);
}

}  // namespace vlkv
