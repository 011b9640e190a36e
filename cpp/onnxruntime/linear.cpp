// vlkv.native::Linear, an operator of ONNX Runtime's CPU provider over run_cpu(LinearParams).
//
//   input [..., K], then for P products: P weights, P scales (bits 8 and 4), P zeros (zeros = 1; float16
//   ones are minimums), P biases (bias = 1), P residuals [..., N] (residual = 1), as LinearProduct says; then
//   norm [K] (norm = 1), gated [..., K] (gated = 1), as LinearParams says -> P results [..., N]
//
// Attributes: products = P; bits: 0 for weights that are floats, 8 or 4; zeros, bias, residual, norm, gated:
// 0 or 1; epsilon; many: a Precision, 0 kFloat32, 1 kBFloat16 or 2 kFixed16. A node that lacks products has
// 1; the others that it lacks are 0.
#include "vlkv/linear.h"

#include <memory>

#include "core/check.h"
#include "onnxruntime/operators.h"

namespace vlkv::onnxruntime {
namespace {

struct Kernel {
  const Api* api;
  int64_t products = 1, bits = 0, zeros = 0, bias = 0, residual = 0, norm = 0, gated = 0, many = 0;
  float epsilon = 0.0F;

  int64_t kinds() const { return 1 + (bits > 0) + (zeros > 0) + (bias > 0) + (residual > 0); }
  size_t inputs() const { return static_cast<size_t>(1 + products * kinds() + (norm > 0) + (gated > 0)); }
};

WeightFormat format_of(const Check& expect, int64_t bits, ElementType type) {
  expect.require(bits == 0 || type == ElementType::kUint8, "weights of ", bits, " bits are not uint8");
  if (bits > 0) return bits == 8 ? WeightFormat::kInt8 : WeightFormat::kInt4;
  switch (type) {
    case ElementType::kFloat:
      return WeightFormat::kFloat32;
    case ElementType::kFloat16:
      return WeightFormat::kFloat16;
    case ElementType::kBFloat16:
      return WeightFormat::kBFloat16;
    default:
      expect.require(false, "weight has element type ", static_cast<int32_t>(type),
                     ", not float (1), float16 (10) or bfloat16 (16)");
  }
  return WeightFormat::kFloat32;
}

// One product of a call, as the inputs after the first say: each kind for all products, then the next kind.
struct Reader {
  const Kernel& kernel;
  const Tensors& tensors;
  LinearParams& p;
  const Check expect{"linear"};

  const Value* input(int64_t kind, int64_t i) const {
    return tensors.input(static_cast<size_t>(1 + kind * kernel.products + i));
  }

  // What is read of the whole call, behind the products' inputs.
  void read_rows(const Shape& input) const {
    size_t index = static_cast<size_t>(1 + kernel.kinds() * kernel.products);
    if (kernel.norm > 0) {
      p.norm = floats(tensors.input(index++), Shape{p.depth}, "norm is not [K] float of K ", p.depth);
      p.epsilon = kernel.epsilon;
    }
    if (kernel.gated > 0) p.gated = floats(tensors.input(index), input, "gated has not the input's shape");
  }

  template <class... Text>
  const float* floats(const Value* value, const Shape& shape, const Text&... text) const {
    expect.require(tensors.shape(value) == shape && tensors.type(value) == ElementType::kFloat, text...);
    return tensors.data<float>(value);
  }

  // `shape` is the result's.
  const float* residual(int64_t i, const Shape& shape) const {
    if (kernel.residual == 0) return nullptr;
    return floats(input(kernel.kinds() - 1, i), shape, "residual has not the shape of result ", i);
  }

  LinearProduct read(int64_t i) const {
    LinearProduct product;
    const Value* weight = input(0, i);
    const Shape shape = tensors.shape(weight);
    const WeightFormat format = format_of(expect, kernel.bits, tensors.type(weight));
    expect.require(i == 0 || format == p.format, "weights differ in their format");
    p.format = format;
    product.weight = tensors.data<void>(weight);
    if (kernel.bits == 0) {
      expect.require(shape.size() == 2 && shape[1] == p.depth, "weight ", i, " is not [N, K] of K ", p.depth);
    } else {
      read_blocks(i, shape, product);
    }
    product.columns = shape[0];
    if (kernel.bias > 0) {
      const Value* bias = input(1 + (kernel.bits > 0) + (kernel.zeros > 0), i);
      product.bias = floats(bias, Shape{shape[0]}, "bias ", i, " is not [N] float of N ", shape[0]);
    }
    return product;
  }

  void read_blocks(int64_t i, const Shape& shape, LinearProduct& product) const {
    expect.require(shape.size() == 3, "weight ", i, " is not [N, G, bytes of a block]");
    const int64_t block = shape[2] * 8 / kernel.bits;
    expect.require(block > 0 && shape[1] == (p.depth + block - 1) / block, "weight ", i, " has ", shape[1],
                   " blocks of ", block, ", not those of K ", p.depth);
    expect.require(i == 0 || block == p.block, "weights differ in their block");
    p.block = block;
    const Value* scales = input(1, i);
    const ElementType type = tensors.type(scales);
    expect.require(tensors.shape(scales) == Shape{shape[0], shape[1]}, "scales ", i, " are not [N, G]");
    expect.require(type == ElementType::kFloat || type == ElementType::kFloat16, "scales ", i,
                   " are not float or float16");
    const DType scale_type = type == ElementType::kFloat ? DType::kFloat32 : DType::kFloat16;
    expect.require(i == 0 || scale_type == p.scale_type, "scales differ in their type");
    p.scale_type = scale_type, product.scales = tensors.data<void>(scales);
    if (kernel.zeros == 0) return;
    const Value* zeros = input(2, i);
    const ElementType kind = tensors.type(zeros);
    expect.require(tensors.shape(zeros) == Shape{shape[0], shape[1]} &&
                       (kind == ElementType::kUint8 || kind == ElementType::kFloat16),
                   "zeros ", i, " are not [N, G] uint8, or float16 minimums");
    if (kind == ElementType::kUint8) {
      product.zeros = tensors.data<uint8_t>(zeros);
    } else {
      product.minimums = tensors.data<uint16_t>(zeros);
    }
  }
};

void compute(const Kernel& kernel, Context* context) {
  const Tensors tensors(kernel.api, context);
  const Check expect("linear");
  expect.require(tensors.inputs() == kernel.inputs(), "has ", tensors.inputs(), " inputs, not ",
                 kernel.inputs());
  Shape shape = tensors.shape(tensors.input(0));
  expect.require(!shape.empty(), "input is not [..., K]");
  LinearParams p;
  p.depth = shape.back(), p.rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) p.rows *= shape[i];
  p.input = tensors.data<float>(tensors.input(0));
  p.precision = static_cast<Precision>(kernel.many);
  const Reader reader{kernel, tensors, p};
  reader.read_rows(shape);
  std::vector<LinearProduct> products;
  for (int64_t i = 0; i < kernel.products; ++i) {
    products.push_back(reader.read(i));
    shape.back() = products.back().columns;
    products.back().residual = reader.residual(i, shape);
    products.back().result = tensors.data<float>(tensors.output(static_cast<size_t>(i), shape));
  }
  p.products = products.data(), p.count = kernel.products;
  Owner owner{kernel.api, context};
  run_cpu(p, owner.loop());
}

std::unique_ptr<Kernel> kernel_of(const Api* api, const KernelInfo* info) {
  auto made = std::make_unique<Kernel>(Kernel{api});
  for (const auto& [name, to] : {std::pair{"products", &made->products},
                                 {"bits", &made->bits},
                                 {"zeros", &made->zeros},
                                 {"bias", &made->bias},
                                 {"residual", &made->residual},
                                 {"norm", &made->norm},
                                 {"gated", &made->gated},
                                 {"many", &made->many}}) {
    attribute(api, Function::kKernelInfoGetAttributeInt, info, name, to);
  }
  attribute(api, Function::kKernelInfoGetAttributeFloat, info, "epsilon", &made->epsilon);
  const Check expect("linear");
  expect.range("products", made->products, 1, 1024);
  expect.require(made->bits == 0 || made->bits == 8 || made->bits == 4, "bits is ", made->bits,
                 ", not 0 (floats), 8 or 4");
  expect.range("many", made->many, 0, 2);
  expect.require(made->zeros == 0 || made->bits > 0, "weights that are floats have no zeros");
  return made;
}

}  // namespace

CustomOp linear_op() {
  CustomOp op = plain_op();
  op.name = [](const CustomOp*) { return "Linear"; };
  op.input_count = [](const CustomOp*) { return size_t{2}; };
  op.output_count = [](const CustomOp*) { return size_t{1}; };
  op.input_type = [](const CustomOp*, size_t index) {
    return index == 0 ? ElementType::kFloat : ElementType::kAny;
  };
  op.input_characteristic = [](const CustomOp*, size_t index) {
    return index == 0 ? Characteristic::kRequired : Characteristic::kVariadic;
  };
  op.output_characteristic = [](const CustomOp*, size_t) { return Characteristic::kVariadic; };
  op.variadic_input_alike = [](const CustomOp*) { return 0; };
  op.create_kernel_or_fail = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(api, [&] { *kernel = kernel_of(api, info).release(); });
  };
  op.compute_or_fail = [](void* kernel, Context* context) {
    const auto* own = static_cast<const Kernel*>(kernel);
    return guarded(own->api, [&] { compute(*own, context); });
  };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace vlkv::onnxruntime
