#include "expressions.h"

#include <limits>

int64_t Expression::Impl::getConstantValue() const {
  return constant ? value : std::numeric_limits<int64_t>::min();
}

nvinfer1::DimsExprs Expressions::dims(std::initializer_list<int64_t> sizes) {
  nvinfer1::DimsExprs dims{static_cast<int32_t>(sizes.size()), {}};
  int32_t axis = 0;
  for (const int64_t size : sizes) dims.d[axis++] = make(size >= 0, size);
  return dims;
}

const nvinfer1::IDimensionExpr* Expressions::Impl::operation(nvinfer1::DimensionOperation op,
                                                             const nvinfer1::IDimensionExpr& first,
                                                             const nvinfer1::IDimensionExpr& second) {
  if (!first.isConstant() || !second.isConstant()) return owner.make(false, -1);
  const int64_t a = first.getConstantValue(), b = second.getConstantValue();
  switch (op) {
    case nvinfer1::DimensionOperation::kSUM:
      return constant(a + b);
    case nvinfer1::DimensionOperation::kPROD:
      return constant(a * b);
    case nvinfer1::DimensionOperation::kMAX:
      return constant(a > b ? a : b);
    case nvinfer1::DimensionOperation::kMIN:
      return constant(a < b ? a : b);
    case nvinfer1::DimensionOperation::kSUB:
      return constant(a - b);
    default:
      return nullptr;
  }
}
