// vlkv.native::Attend, an operator of ONNX Runtime's CPU provider over run_cpu(AttendParams).
//
//   query [B, 1, Hq * D], key, value [B, 1, Hkv * D], key_cache, value_cache [B, Hkv, C, D], last [B] int32
//   -> result [B, 1, Hq * D], new_key_cache, new_value_cache; attribute scale
//
// Caches whose outputs are bound to the same memory are updated in place; others are copied first.
#include "vlkv/attend.h"

#include <algorithm>
#include <memory>

#include "core/check.h"
#include "onnxruntime/operators.h"

namespace vlkv::onnxruntime {
namespace {

constexpr size_t kInputs = 6, kOutputs = 3, kLast = 5;

struct Kernel {
  const Api* api;
  float scale;
};

// The cache's memory: that of the output, into which the input is copied if it has memory of its own.
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
  run_cpu(p, owner.loop());
}

}  // namespace

CustomOp attend_op() {
  CustomOp op = plain_op();
  op.name = [](const CustomOp*) { return "Attend"; };
  op.input_count = [](const CustomOp*) { return kInputs; };
  op.output_count = [](const CustomOp*) { return kOutputs; };
  op.input_type = [](const CustomOp*, size_t index) {
    return index == kLast ? ElementType::kInt32 : ElementType::kFloat;
  };
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

}  // namespace vlkv::onnxruntime
