// The operators that this library gives ONNX Runtime, and what their files share.
#pragma once

#include <exception>

#include "onnxruntime/tensors.h"
#include "vlkv/attend.h"

namespace vlkv::onnxruntime {

CustomOp attend_op();
CustomOp linear_op();

// An operator of the CPU provider whose inputs are required; the caller fills in what differs.
CustomOp plain_op();

// Who runs a kernel: ONNX Runtime's own threads, which wait for work in a loop while a graph runs. Others
// would take their cores.
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
