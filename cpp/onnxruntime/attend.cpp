// vlkv.native::Attend, an operator of ONNX Runtime's CPU provider over run_cpu(AttendParams).
//
//   query [B, 1, Hq * D], key, value [B, 1, Hkv * D], key_cache, value_cache [B, Hkv, C, D], last [B] int32
//   -> result [B, 1, Hq * D], new_key_cache, new_value_cache; attribute scale
//
// Caches whose outputs are bound to the same memory are updated in place; others are copied first.
#include "vlkv/attend.h"

#include <algorithm>
#include <exception>
#include <memory>

#include "core/check.h"
#include "onnxruntime/tensors.h"

namespace vlkv::onnxruntime {
namespace {

constexpr size_t kInputs = 6, kOutputs = 3, kLast = 5;

struct Kernel {
  const Api* api;
  float scale;
};

struct Owner {
  const Api* api;
  const Context* context;
};

struct Body {
  void (*run)(void* data, int64_t i);
  void* data;
};

// ONNX Runtime's own threads, which wait for work in a loop while a graph runs: others would take their
// cores.
void parallel_for(void* owner, int64_t count, void (*run)(void* data, int64_t i), void* data) {
  const auto* own = static_cast<const Owner*>(owner);
  Body body{run, data};
  void (*const item)(void*, size_t) = [](void* all, size_t i) {
    const auto* one = static_cast<const Body*>(all);
    one->run(one->data, static_cast<int64_t>(i));
  };
  check(own->api, Function::kKernelContextParallelFor, own->context, item, static_cast<size_t>(count),
        size_t{0}, static_cast<void*>(&body));
}

// The caches' memory: what is bound to the output, filled from the input where that is elsewhere.
float* in_place(const Tensors& tensors, const Value* input, size_t output, const Shape& shape) {
  float* from = tensors.data<float>(input);
  float* to = tensors.data<float>(tensors.output(output, shape));
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  if (to != from) std::copy_n(from, count, to);
  return to;
}

void compute(const Kernel& kernel, Context* context) {
  const Tensors tensors(kernel.api, context);
  const Value* inputs[kInputs];
  for (size_t i = 0; i < kInputs; ++i) inputs[i] = tensors.input(i);
  const Shape query = tensors.shape(inputs[0]), cache = tensors.shape(inputs[3]);
  const Check expect("attend");
  expect.require(query.size() == 3 && query[1] == 1, "query is not [B, 1, Hq * D]");
  expect.require(cache.size() == 4 && cache[0] == query[0], "key_cache is not [B, Hkv, C, D] of query's B");
  expect.require(cache[3] > 0 && query[2] % cache[3] == 0, "query's ", query[2],
                 " is no multiple of the head dimension ", cache[3]);
  const Shape added{cache[0], 1, cache[1] * cache[3]};
  expect.require(tensors.shape(inputs[1]) == added, "key is not [B, 1, Hkv * D] of key_cache");
  expect.require(tensors.shape(inputs[2]) == added, "value is not [B, 1, Hkv * D] of key_cache");
  expect.require(tensors.shape(inputs[4]) == cache, "value_cache has not key_cache's shape");
  expect.require(tensors.shape(inputs[kLast]) == Shape{cache[0]}, "last is not [B]");
  AttendParams p;
  p.batch = cache[0], p.kv_heads = cache[1], p.slots = cache[2], p.head_dim = cache[3];
  p.query_heads = query[2] / cache[3];
  p.query = tensors.data<float>(inputs[0]);
  p.key = tensors.data<float>(inputs[1]), p.value = tensors.data<float>(inputs[2]);
  p.last = tensors.data<int32_t>(inputs[kLast]);
  p.result = tensors.data<float>(tensors.output(0, query));
  p.key_cache = in_place(tensors, inputs[3], 1, cache);
  p.value_cache = in_place(tensors, inputs[4], 2, cache);
  p.scale = kernel.scale;
  Owner owner{kernel.api, context};
  run_cpu(p, {parallel_for, &owner});
}

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

CustomOp attend_op() {
  CustomOp op{};
  op.version = kVersion;
  op.name = [](const CustomOp*) { return "Attend"; };
  op.provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
  op.input_count = [](const CustomOp*) { return kInputs; };
  op.output_count = [](const CustomOp*) { return kOutputs; };
  op.input_type = [](const CustomOp*, size_t index) {
    return index == kLast ? ElementType::kInt32 : ElementType::kFloat;
  };
  op.output_type = [](const CustomOp*, size_t) { return ElementType::kFloat; };
  op.input_characteristic = [](const CustomOp*, size_t) { return Characteristic::kRequired; };
  op.output_characteristic = op.input_characteristic;
  op.input_memory = [](const CustomOp*, size_t) { return MemoryType::kDefault; };
  op.variadic_input_least = [](const CustomOp*) { return 1; };
  op.variadic_input_alike = op.variadic_output_least = op.variadic_output_alike = op.variadic_input_least;
  op.first_opset = op.variadic_input_least;
  op.last_opset = [](const CustomOp*) { return INT32_MAX; };
  op.create_kernel_or_fail = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(api, [&] {
      auto made = std::make_unique<Kernel>(Kernel{api, 0.0F});
      check(api, Function::kKernelInfoGetAttributeFloat, info, "scale", &made->scale);
      *kernel = made.release();
    });
  };
  op.compute_or_fail = [](void* kernel, Context* context) {
    const auto* own = static_cast<const Kernel*>(kernel);
    return guarded(own->api, [&] { compute(*own, context); });
  };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

// The domain, made once: sessions hold on to it.
const Domain* domain(const Api* api) {
  static const CustomOp op = attend_op();
  static const Domain* const made = [api] {
    Domain* fresh = nullptr;
    check(api, Function::kCreateCustomOpDomain, "vlkv.native", &fresh);
    check(api, Function::kCustomOpDomainAdd, fresh, &op);
    return static_cast<const Domain*>(fresh);
  }();
  return made;
}

}  // namespace
}  // namespace vlkv::onnxruntime

// What register_custom_ops_library looks for. Of an ONNX Runtime before 1.17 nothing is registered, and it
// refuses the graph's operator by name.
extern "C" VLKV_API vlkv::onnxruntime::Status* RegisterCustomOps(
    vlkv::onnxruntime::SessionOptions* options, const vlkv::onnxruntime::ApiBase* base) noexcept {
  using namespace vlkv::onnxruntime;
  const Api* api = base->api(kVersion);
  if (api == nullptr) return nullptr;
  return guarded(api, [&] { check(api, Function::kAddCustomOpDomain, options, domain(api)); });
}
