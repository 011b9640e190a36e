// Operators of ONNX Runtime's CPU provider over run_cpu(AttendParams).
//
// vlkv.native::Attend, one token per prompt:
//   query [B, 1, Hq * D], key, value [B, 1, Hkv * D], key_cache, value_cache [B, Hkv, C, D], last int32,
//   recall [B] int64 (optional)
//   -> result [B, 1, Hq * D], new_key_cache, new_value_cache; attributes scale, layer
//
// vlkv.native::AttendFloat32, AttendBFloat16, AttendFloat16 and AttendInt8, S tokens per prompt, over caches
// of these types, for int8 [B, Hkv, C, D + 4], as vlkv/types.h says:
//   query [B, S, Hq * D], key, value [B, S, Hkv * D], key_cache, value_cache, last, first int32,
//   recall [B] int64 (optional)
//   -> result [B, S, Hq * D], new_key_cache, new_value_cache; attributes scale, layer, many (a Precision: 0
//   kFloat32, 1 kBFloat16, or 2 kFixed16, which is 0 here)
//
// last and first are [B], or [L, B], of which the row of the attribute `layer` is read.
//
// recall: the number of each prompt's store of evicted tokens (vlkv/recall.h), whose layer `layer` is read; 0
// for none. Only calls with one token per prompt may name stores. Caches whose outputs are bound to the same
// memory are updated in place; others are copied first.
#include "vlkv/attend.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "core/check.h"
#include "onnxruntime/operators.h"

namespace vlkv::onnxruntime {
namespace {

constexpr size_t kOutputs = 3, kKeyCache = 3, kValueCache = 4, kLast = 5, kFirst = 6;

struct Kernel {
  const Api* api;
  DType cache;
  bool many;  // tokens per prompt, whose first slots are an input
  float scale;
  int64_t layer;  // -1: none
  int64_t precision = 0;
};

// The stores that the input `recall` names; they exist while the call runs.
struct Stores {
  std::vector<std::shared_ptr<const Recall>> held;
  std::vector<const Recall*> of;

  Stores(const Tensors& tensors, size_t input, int64_t batch) {
    if (tensors.inputs() <= input) return;
    const Value* numbers = tensors.input(input);
    if (numbers == nullptr) return;
    const Check expect("attend");
    expect.require(tensors.shape(numbers) == Shape{batch}, "recall is not [B]");
    const auto* number = tensors.data<int64_t>(numbers);
    if (std::all_of(number, number + batch, [](int64_t n) { return n == 0; })) return;
    for (int64_t b = 0; b < batch; ++b) {
      held.push_back(number[b] == 0 ? nullptr : Recall::find(number[b]));
      expect.require(number[b] == 0 || held.back() != nullptr, "prompt ", b,
                     " names a store of evicted tokens, ", number[b], ", that does not exist");
      of.push_back(held.back().get());
    }
  }
};

// The lengths `name` of the call's prompts.
const int32_t* lengths(const Kernel& kernel, const Tensors& tensors, size_t index, int64_t batch,
                       const char* name) {
  const Value* value = tensors.input(index);
  const Shape shape = tensors.shape(value);
  const Check expect("attend");
  if (shape == Shape{batch}) return tensors.data<int32_t>(value);
  expect.require(kernel.layer >= 0 && shape.size() == 2 && shape[1] == batch && shape[0] > kernel.layer, name,
                 " is neither [B] nor [L, B] with a row for layer ", kernel.layer);
  return tensors.data<int32_t>(value) + kernel.layer * batch;
}

// The cache's memory: that of the output, into which the input is copied if it has memory of its own.
void* in_place(const Tensors& tensors, const Value* input, size_t output, const Shape& shape, int64_t item) {
  const char* from = tensors.data<char>(input);
  char* to = tensors.data<char>(tensors.output(output, shape));
  int64_t bytes = item;
  for (const int64_t size : shape) bytes *= size;
  if (to != from) std::copy_n(from, bytes, to);
  return to;
}

void compute(const Kernel& kernel, Context* context) {
  const Tensors tensors(kernel.api, context);
  const auto* query_in = tensors.input(0);
  const Value* caches[] = {tensors.input(kKeyCache), tensors.input(kValueCache)};
  const Shape query = tensors.shape(query_in), cache = tensors.shape(caches[0]);
  const bool many = kernel.many;
  const Check expect("attend");
  expect.require(query.size() == 3 && (many || query[1] == 1), "query is not [B, ", many ? "S" : "1",
                 ", Hq * D]");
  expect.require(cache.size() == 4 && cache[0] == query[0], "key_cache is not [B, Hkv, C, D] of query's B");
  const int64_t dim = cache[3] - row_bytes(kernel.cache, 0);
  expect.require(dim > 0 && query[2] % dim == 0, "query's ", query[2],
                 " is no multiple of the head dimension ", dim);
  const Shape added{cache[0], query[1], cache[1] * dim};
  expect.require(tensors.shape(tensors.input(1)) == added, "key is not [B, S, Hkv * D] of key_cache");
  expect.require(tensors.shape(tensors.input(2)) == added, "value is not [B, S, Hkv * D] of key_cache");
  expect.require(tensors.shape(caches[1]) == cache, "value_cache has not key_cache's shape");
  AttendParams p;
  if (many) p.first = lengths(kernel, tensors, kFirst, cache[0], "first");
  p.last = lengths(kernel, tensors, kLast, cache[0], "last");
  p.batch = cache[0], p.rows = query[1], p.kv_heads = cache[1], p.slots = cache[2], p.head_dim = dim;
  p.query_heads = query[2] / dim, p.cache = kernel.cache;
  p.query = tensors.data<float>(query_in);
  p.key = tensors.data<float>(tensors.input(1)), p.value = tensors.data<float>(tensors.input(2));
  p.result = tensors.data<float>(tensors.output(0, query));
  p.key_cache = in_place(tensors, caches[0], 1, cache, size_of(kernel.cache));
  p.value_cache = in_place(tensors, caches[1], 2, cache, size_of(kernel.cache));
  p.scale = kernel.scale, p.precision = static_cast<Precision>(kernel.precision);
  const Stores stores(tensors, many ? kFirst + 1 : kLast + 1, p.batch);
  p.recall = stores.of.empty() ? nullptr : stores.of.data(), p.layer = kernel.layer;
  Owner owner{kernel.api, context};
  run_cpu(p, owner.loop());
}

// What the operators' types differ in. ONNX Runtime allows one input of any type where outputs have any, so
// each type of cache has an operator of its own.
template <DType kCache, bool kMany = true>
struct Of {
  static constexpr size_t kRecall = kMany ? kFirst + 1 : kLast + 1;
  static constexpr ElementType kElement = kCache == DType::kBFloat16  ? ElementType::kBFloat16
                                          : kCache == DType::kFloat16 ? ElementType::kFloat16
                                          : kCache == DType::kInt8    ? ElementType::kInt8
                                                                      : ElementType::kFloat;

  static ElementType input_type(const CustomOp*, size_t index) {
    if (index == kRecall) return ElementType::kInt64;
    if (index >= kLast) return ElementType::kInt32;
    return index >= kKeyCache ? kElement : ElementType::kFloat;
  }
  static ElementType output_type(const CustomOp*, size_t index) {
    return index == 0 ? ElementType::kFloat : kElement;
  }
  static Status* create(const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(api, [&] {
      auto made = std::make_unique<Kernel>(Kernel{api, kCache, kMany, 0.0F, -1});
      attribute(api, Function::kKernelInfoGetAttributeFloat, info, "scale", &made->scale);
      attribute(api, Function::kKernelInfoGetAttributeInt, info, "layer", &made->layer);
      if (kMany) attribute(api, Function::kKernelInfoGetAttributeInt, info, "many", &made->precision);
      *kernel = made.release();
    });
  }
  static CustomOp make(const char* (*name)(const CustomOp*)) {
    CustomOp op = plain_op();
    op.name = name;
    op.input_count = [](const CustomOp*) { return kRecall + 1; };
    op.input_characteristic = [](const CustomOp*, size_t index) {
      return index == kRecall ? Characteristic::kOptional : Characteristic::kRequired;
    };
    op.output_count = [](const CustomOp*) { return kOutputs; };
    op.input_type = input_type, op.output_type = output_type;
    op.create_kernel_or_fail = create;
    op.compute_or_fail = [](void* kernel, Context* context) {
      const auto* own = static_cast<const Kernel*>(kernel);
      return guarded(own->api, [&] { compute(*own, context); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return op;
  }
};

}  // namespace

CustomOp attend_op() {
  return Of<DType::kFloat32, false>::make([](const CustomOp*) { return "Attend"; });
}

CustomOp attend_float32_op() {
  return Of<DType::kFloat32>::make([](const CustomOp*) { return "AttendFloat32"; });
}

CustomOp attend_bfloat16_op() {
  return Of<DType::kBFloat16>::make([](const CustomOp*) { return "AttendBFloat16"; });
}

CustomOp attend_float16_op() {
  return Of<DType::kFloat16>::make([](const CustomOp*) { return "AttendFloat16"; });
}

CustomOp attend_int8_op() {
  return Of<DType::kInt8>::make([](const CustomOp*) { return "AttendInt8"; });
}

}  // namespace vlkv::onnxruntime
