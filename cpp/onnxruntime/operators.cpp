#include "onnxruntime/operators.h"

#include <atomic>
#include <cstdint>

namespace vlkv::onnxruntime {

void Owner::run(void* owner, int64_t count, void (*body)(void* data, int64_t i), void* data) {
  struct Body {
    void (*run)(void* data, int64_t i);
    void* data;
  } both{body, data};
  const auto* own = static_cast<const Owner*>(owner);
  void (*const item)(void*, size_t) = [](void* all, size_t i) {
    const auto* one = static_cast<const Body*>(all);
    one->run(one->data, static_cast<int64_t>(i));
  };
  check(own->api, Function::kKernelContextParallelFor, own->context, item, static_cast<size_t>(count),
        size_t{0}, static_cast<void*>(&both));
}

CustomOp plain_op() {
  CustomOp op{};
  op.version = kVersion;
  op.provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.input_type = [](const CustomOp*, size_t) { return ElementType::kFloat; };
  op.output_type = op.input_type;
  op.input_characteristic = [](const CustomOp*, size_t) { return Characteristic::kRequired; };
  op.output_characteristic = op.input_characteristic;
  op.input_memory = [](const CustomOp*, size_t) { return MemoryType::kDefault; };
  op.variadic_input_least = [](const CustomOp*) { return 1; };
  op.variadic_input_alike = op.variadic_output_least = op.variadic_output_alike = op.variadic_input_least;
  op.first_opset = op.variadic_input_least;
  op.last_opset = [](const CustomOp*) { return INT32_MAX; };
  return op;
}

namespace {

std::atomic<const Api*> last_api = nullptr;

// The domain, which is made once because sessions keep pointers to it.
const Domain* domain(const Api* api) {
#if defined(VLKV_TUNED)  // a library of `vlkv tune` has the operators of CPUs alone
  static const CustomOp operators[] = {attend_op(),         attend_float32_op(), attend_bfloat16_op(),
                                       attend_float16_op(), attend_int8_op(),    linear_op()};
#else
  constexpr DType k16 = DType::kFloat16, kB16 = DType::kBFloat16;
  static const CustomOp operators[] = {attend_op(),           attend_float32_op(),    attend_bfloat16_op(),
                                       attend_float16_op(),   attend_int8_op(),       linear_op(),
                                       device_attend_op(k16), device_attend_op(kB16), device_score_op(k16),
                                       device_score_op(kB16), device_evict_op(k16),   device_evict_op(kB16)};
#endif
  static const Domain* const made = [api] {
    Domain* fresh = nullptr;
    check(api, Function::kCreateCustomOpDomain, "vlkv.native", &fresh);
    for (const CustomOp& op : operators) check(api, Function::kCustomOpDomainAdd, fresh, &op);
    return static_cast<const Domain*>(fresh);
  }();
  return made;
}

}  // namespace

const Api* registered_api() { return last_api; }

}  // namespace vlkv::onnxruntime

// The entry point that register_custom_ops_library calls. On ONNX Runtime before 1.17 it registers nothing,
// so that the graph's operators are refused by name.
extern "C" VLKV_API vlkv::onnxruntime::Status* RegisterCustomOps(
    vlkv::onnxruntime::SessionOptions* options, const vlkv::onnxruntime::ApiBase* base) noexcept {
  using namespace vlkv::onnxruntime;
  const Api* api = base->api(kVersion);
  if (api == nullptr) return nullptr;
  last_api = api;
  return guarded(api, [&] { check(api, Function::kAddCustomOpDomain, options, domain(api)); });
}
