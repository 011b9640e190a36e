// A kernel's inputs and outputs in ONNX Runtime.
#pragma once

#include <cstdint>
#include <vector>

#include "onnxruntime/abi.h"

namespace vlkv::onnxruntime {

// A status to return to ONNX Runtime unchanged.
struct Failed {
  Status* status;
};

template <class... Arguments>
void check(const Api* api, Function function, Arguments... arguments) {
  if (Status* status = call<Status*>(api, function, arguments...)) throw Failed{status};
}

inline Status* failure(const Api* api, ErrorCode code, const char* text) {
  return call<Status*>(api, Function::kCreateStatus, code, text);
}

// Reads an attribute; one that the node lacks leaves `to` as it is.
template <class T>
void attribute(const Api* api, Function function, const KernelInfo* info, const char* name, T* to) {
  T found = *to;
  if (Status* status = call<Status*>(api, function, info, name, &found)) {
    call<void>(api, Function::kReleaseStatus, status);
  } else {
    *to = found;
  }
}

using Shape = std::vector<int64_t>;

class Tensors {
 public:
  Tensors(const Api* api, Context* context) : api_(api), context_(context) {}

  const Value* input(size_t index) const {
    const Value* value = nullptr;
    check(api_, Function::kKernelContextGetInput, static_cast<const Context*>(context_), index, &value);
    return value;
  }

  // The output's memory: that which the caller bound, else newly allocated.
  Value* output(size_t index, const Shape& shape) const {
    Value* value = nullptr;
    check(api_, Function::kKernelContextGetOutput, context_, index, shape.data(), shape.size(), &value);
    return value;
  }

  Shape shape(const Value* value) const {
    ShapeInfo* info = nullptr;
    check(api_, Function::kGetTensorTypeAndShape, value, &info);
    size_t rank = 0;
    Status* status =
        call<Status*>(api_, Function::kGetDimensionsCount, static_cast<const ShapeInfo*>(info), &rank);
    Shape sizes(status ? 0 : rank);
    if (!status) {
      status = call<Status*>(api_, Function::kGetDimensions, static_cast<const ShapeInfo*>(info),
                             sizes.data(), rank);
    }
    call<void>(api_, Function::kReleaseTensorTypeAndShapeInfo, info);
    if (status) throw Failed{status};
    return sizes;
  }

  size_t inputs() const {
    size_t count = 0;
    check(api_, Function::kKernelContextGetInputCount, static_cast<const Context*>(context_), &count);
    return count;
  }

  ElementType type(const Value* value) const {
    ShapeInfo* info = nullptr;
    check(api_, Function::kGetTensorTypeAndShape, value, &info);
    ElementType found = ElementType::kAny;
    Status* status =
        call<Status*>(api_, Function::kGetTensorElementType, static_cast<const ShapeInfo*>(info), &found);
    call<void>(api_, Function::kReleaseTensorTypeAndShapeInfo, info);
    if (status) throw Failed{status};
    return found;
  }

  template <class T>
  T* data(const Value* value) const {
    void* memory = nullptr;
    check(api_, Function::kGetTensorMutableData, const_cast<Value*>(value), &memory);
    return static_cast<T*>(memory);
  }

 private:
  const Api* api_;
  Context* context_;
};

}  // namespace vlkv::onnxruntime
