// What the operators of CUDA's provider share. Tensors lie in the device's memory unless said otherwise, and
// work goes to the provider's stream: nothing is allocated, copied or waited for.
//
// The last output of each operator is its workspace, uint8: ONNX Runtime allocates it as it does any tensor,
// in the order of the stream, and takes it back once the node has run. Nothing reads it.
#pragma once

#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "core/check.h"
#include "onnxruntime/operators.h"
#include "vlkv/cuda.h"

// The tests run the operators on the CPU's provider, over emulated kernels.
#ifndef VLKV_DEVICE_PROVIDER
#define VLKV_DEVICE_PROVIDER "CUDAExecutionProvider"
#endif

namespace vlkv::onnxruntime {

constexpr ElementType element_of(DType cache) {
  return cache == DType::kFloat16 ? ElementType::kFloat16 : ElementType::kBFloat16;
}

class DeviceTensors : public Tensors {
 public:
  DeviceTensors(const Api* api, Context* context) : Tensors(api, context), api_(api), context_(context) {}

  // The provider's stream; null on the CPU's provider.
  CudaStream stream() const {
    void* found = nullptr;
    check(api_, Function::kKernelContextGetGpuComputeStream, static_cast<const Context*>(context_), &found);
    return static_cast<CudaStream>(found);
  }

  template <class T>
  T* made(size_t index, const Shape& shape) const {
    return data<T>(output(index, shape));
  }

  // The input or the output `index`, of that shape [B, heads, slots, dim].
  ConstView given_view(size_t index, DType type, const Shape& shape) const {
    return dense(static_cast<const void*>(data<void>(input(index))), type, shape[1], shape[2], shape[3]);
  }
  View made_view(size_t index, DType type, const Shape& shape) const {
    return dense(made<void>(index, shape), type, shape[1], shape[2], shape[3]);
  }

  // `size` bytes of the output `index`, aligned as kernels need it.
  void* workspace(size_t index, size_t size) const {
    return aligned(made<void>(index, {static_cast<int64_t>(with_alignment(size))}));
  }

 private:
  const Api* api_;
  Context* context_;
};

// The shapes of a node's inputs, from which those of its outputs follow. An output of unknown size, as the
// workspace is, gets no shape: ONNX Runtime gives outputs of equal shapes one piece of memory, and may take
// two unknown ones for equal.
class Inference {
 public:
  explicit Inference(InferenceContext* context) : api_(registered_api()), context_(context) {}

  // Gives output `to` the type and the shape of input `from`.
  void same(size_t to, size_t from) const { set(to, input(from)); }

  // Gives output `to` a type, and as its shape the first `rank` sizes of input `from`.
  void first_sizes(size_t to, ElementType type, size_t from, size_t rank) const {
    const ShapeInfo* const source = input(from);
    size_t all = 0;
    check(api_, Function::kGetDimensionsCount, source, &all);
    if (all < rank) return;
    Shape sizes(all);
    std::vector<const char*> names(all);
    check(api_, Function::kGetDimensions, source, sizes.data(), all);
    check(api_, Function::kGetSymbolicDimensions, source, names.data(), all);
    ShapeInfo* info = nullptr;
    check(api_, Function::kCreateTensorTypeAndShapeInfo, &info);
    const auto release = [this](ShapeInfo* made) {
      call<void>(api_, Function::kReleaseTensorTypeAndShapeInfo, made);
    };
    const std::unique_ptr<ShapeInfo, decltype(release)> owner(info, release);
    check(api_, Function::kSetTensorElementType, info, type);
    check(api_, Function::kSetDimensions, info, static_cast<const int64_t*>(sizes.data()), rank);
    check(api_, Function::kSetSymbolicDimensions, info, names.data(), rank);
    set(to, info);
  }

 private:
  const ShapeInfo* input(size_t index) const {
    ShapeInfo* info = nullptr;
    check(api_, Function::kShapeInferContextGetInputTypeShape, static_cast<const InferenceContext*>(context_),
          index, &info);
    return info;
  }

  void set(size_t index, const ShapeInfo* info) const {
    check(api_, Function::kShapeInferContextSetOutputTypeShape,
          static_cast<const InferenceContext*>(context_), index, info);
  }

  const Api* api_;
  InferenceContext* context_;
};

// An operator for caches of type kCache. Kernel has: kName, kInputs and kOutputs (element types, kCacheType
// for the cache's), kHostInput (the input that is read on the host, or none), a constructor from the node,
// compute(tensors) and infer(Inference).
inline constexpr ElementType kCacheType = ElementType::kAny;
inline constexpr size_t kNoInput = SIZE_MAX;

template <class Kernel, DType kCache>
struct DeviceOp {
  static ElementType concrete(ElementType type) { return type == kCacheType ? element_of(kCache) : type; }

  static const char* name(const CustomOp*) {
    static const std::string made =
        std::string(Kernel::kName) + (kCache == DType::kFloat16 ? "Float16" : "BFloat16");
    return made.c_str();
  }

  static CustomOp make() {
    CustomOp op = plain_op();
    op.name = name;
    op.provider = [](const CustomOp*) { return VLKV_DEVICE_PROVIDER; };
    op.input_count = [](const CustomOp*) { return std::size(Kernel::kInputs); };
    op.output_count = [](const CustomOp*) { return std::size(Kernel::kOutputs); };
    op.input_type = [](const CustomOp*, size_t i) { return concrete(Kernel::kInputs[i]); };
    op.output_type = [](const CustomOp*, size_t i) { return concrete(Kernel::kOutputs[i]); };
    op.input_memory = [](const CustomOp*, size_t i) {
      return i == Kernel::kHostInput ? MemoryType::kHostInput : MemoryType::kDefault;
    };
    op.create_kernel_or_fail = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
      return guarded(api, [&] { *kernel = new Kernel(api, info, kCache); });
    };
    op.compute_or_fail = [](void* kernel, Context* context) {
      const auto* own = static_cast<const Kernel*>(kernel);
      return guarded(own->api, [&] { own->compute(DeviceTensors(own->api, context)); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.infer_shapes = [](const CustomOp*, InferenceContext* context) {
      return guarded(registered_api(), [&] { Kernel::infer(Inference(context)); });
    };
    return op;
  }
};

template <class Kernel>
CustomOp device_op(DType cache) {
  return cache == DType::kFloat16 ? DeviceOp<Kernel, DType::kFloat16>::make()
                                  : DeviceOp<Kernel, DType::kBFloat16>::make();
}

}  // namespace vlkv::onnxruntime
