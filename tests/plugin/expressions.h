// Sizes as TensorRT gives them to getOutputShapes: constants, or unknown until run time.
#pragma once

#include <NvInferRuntime.h>

#include <deque>
#include <initializer_list>

class Expression final : public nvinfer1::IDimensionExpr {
 public:
  Expression(bool constant, int64_t value) : impl_(constant, value) { mImpl = &impl_; }

 private:
  struct Impl final : nvinfer1::apiv::VDimensionExpr {
    Impl(bool constant, int64_t value) : constant(constant), value(value) {}
    bool isConstant() const override { return constant; }
    int64_t getConstantValue() const override;
    bool isSizeTensor() const override { return false; }
    bool constant;
    int64_t value;
  };
  Impl impl_;
};

class Expressions final : public nvinfer1::IExprBuilder {
 public:
  Expressions() : impl_(*this) { mImpl = &impl_; }

  // A size below 0 is one that is known at run time only.
  nvinfer1::DimsExprs dims(std::initializer_list<int64_t> sizes);
  const Expression* make(bool constant, int64_t value) { return &made_.emplace_back(constant, value); }

 private:
  struct Impl final : nvinfer1::apiv::VExprBuilder {
    explicit Impl(Expressions& owner) : owner(owner) {}
    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return owner.make(true, value); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation op,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override;
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      return owner.make(false, -1);
    }
    Expressions& owner;
  };
  Impl impl_;
  std::deque<Expression> made_;
};
