// The operators that this library registers with ONNX Runtime, and code that their files share.
#pragma once

#include <exception>

#include "onnxruntime/tensors.h"
#include "vlkv/attend.h"

namespace vlkv::onnxruntime {

CustomOp attend_op();
CustomOp attend_float32_op();
CustomOp attend_bfloat16_op();
CustomOp attend_float16_op();
CustomOp attend_int8_op();
CustomOp linear_op();

// Those of CUDA's provider, whose cache has that type: float16 or bfloat16.
CustomOp device_attend_op(DType cache);
CustomOp device_score_op(DType cache);
CustomOp device_evict_op(DType cache);

// ONNX Runtime's functions, for callbacks that are not given them: those of the last registration.
const Api* registered_api();

// An operator of the CPU provider with required inputs; the caller fills in the rest.
CustomOp plain_op();

// Runs a kernel's loops on ONNX Runtime's own threads: these spin while a graph runs, so other threads would
// compete for the cores.
struct Owner {
  const Api* api;
  const Context* context;

  Loop loop() { return {run, this}; }

 private:
  static void run(void* owner, int64_t count, void (*body)(void* data, int64_t i), void* data);
};

// No exception may reach ONNX Runtime's C interface.
template <class Body>
Status* guarded(const Api* api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const InvalidArgument& error) {
    return failure(api, ErrorCode::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return failure(api, ErrorCode::kFail, error.what());
  }
}

}  // namespace vlkv::onnxruntime
