// The parts of ONNX Runtime's C interface that this library uses, declared here because its wheels contain no
// headers. The interface only grows at its end, so indices never change (onnxruntime_c_api.h, "OrtApi";
// docs/notes/ops.md).
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlkv::onnxruntime {

inline constexpr uint32_t kVersion = 17;  // of ONNX Runtime, the first with KernelContext_ParallelFor

struct Status;
struct Context;
struct Value;
struct ShapeInfo;
struct Domain;
struct SessionOptions;
struct KernelInfo;
struct InferenceContext;
struct Api;

struct ApiBase {
  const Api* (*api)(uint32_t version);
  const char* (*version)();
};

// Places of functions in the table that ApiBase::api returns.
enum class Function : size_t {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kCreateTensorTypeAndShapeInfo = 57,
  kSetTensorElementType = 58,
  kSetDimensions = 59,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetSymbolicDimensions = 63,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt = 86,
  kKernelContextGetInputCount = 88,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelContextGetGpuComputeStream = 193,
  kShapeInferContextGetInputTypeShape = 268,
  kShapeInferContextSetOutputTypeShape = 270,
  kSetSymbolicDimensions = 271,
  kKernelContextParallelFor = 274,
};

enum class ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2 };
enum class ElementType : int32_t {
  kAny = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBFloat16 = 16
};
enum class Characteristic : int32_t { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum class MemoryType : int32_t { kHostInput = -2, kDefault = 0 };

// An operator: what the library fills in for ONNX Runtime to call.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t index);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t index);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void* kernel, Context*);
  void (*destroy)(void* kernel);
  Characteristic (*input_characteristic)(const CustomOp*, size_t index);
  Characteristic (*output_characteristic)(const CustomOp*, size_t index);
  MemoryType (*input_memory)(const CustomOp*, size_t index);
  int (*variadic_input_least)(const CustomOp*);
  int (*variadic_input_alike)(const CustomOp*);
  int (*variadic_output_least)(const CustomOp*);
  int (*variadic_output_alike)(const CustomOp*);
  Status* (*create_kernel_or_fail)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*compute_or_fail)(void* kernel, Context*);
  Status* (*infer_shapes)(const CustomOp*, InferenceContext*);
  int (*first_opset)(const CustomOp*);
  int (*last_opset)(const CustomOp*);
};

// The function at that place, called with what its declaration in onnxruntime_c_api.h takes.
template <class Result, class... Arguments>
Result call(const Api* api, Function function, Arguments... arguments) {
  using Pointer = Result (*)(Arguments...);
  const auto* table = reinterpret_cast<void* const*>(api);
  return reinterpret_cast<Pointer>(table[static_cast<size_t>(function)])(arguments...);
}

}  // namespace vlkv::onnxruntime
