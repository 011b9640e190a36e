// vlkv.native::DeviceEvictFloat16 and DeviceEvictBFloat16, operators of ONNX Runtime's CUDA provider over
// run_cuda(EvictParams):
//
//   key, value [B, Hkv, C, D], score [B, Hkv, C] float32, length, keep, sinks, recent [B] int64, capacity []
//   int64 in the host's memory -> new_key, new_value [B, Hkv, capacity, D], position [B, Hkv, capacity]
//   int32, workspace; attributes per_head, merge: 0 or 1
#include "onnxruntime/device.h"

namespace vlkv::onnxruntime {
namespace {

constexpr ElementType kFloat = ElementType::kFloat, kInt64 = ElementType::kInt64;
constexpr size_t kCapacity = 7;

struct DeviceEvict {
  static constexpr const char* kName = "DeviceEvict";
  static constexpr ElementType kInputs[] = {kCacheType, kCacheType, kFloat, kInt64,
                                            kInt64,     kInt64,     kInt64, kInt64};
  static constexpr ElementType kOutputs[] = {kCacheType, kCacheType, ElementType::kInt32,
                                             ElementType::kUint8};
  static constexpr size_t kHostInput = kCapacity;

  const Api* api;
  DType cache;
  int64_t per_head = 1, merge = 0;

  DeviceEvict(const Api* runtime, const KernelInfo* info, DType type) : api(runtime), cache(type) {
    check(api, Function::kKernelInfoGetAttributeInt, info, "per_head", &per_head);
    check(api, Function::kKernelInfoGetAttributeInt, info, "merge", &merge);
  }

  // The capacity is not known before the node runs.
  static void infer(const Inference&) {}

  void compute(const DeviceTensors& tensors) const {
    const Shape key = tensors.shape(tensors.input(0));
    const Check expect("evict");
    expect.require(key.size() == 4, "key is not [B, Hkv, C, D]");
    expect.require(tensors.shape(tensors.input(1)) == key, "value has not key's shape");
    expect.require(tensors.shape(tensors.input(2)) == Shape{key[0], key[1], key[2]},
                   "score is not [B, Hkv, C]");
    constexpr const char* kCounts[] = {"length", "keep", "sinks", "recent"};
    for (size_t i = 0; i < std::size(kCounts); ++i) {
      expect.require(tensors.shape(tensors.input(3 + i)) == Shape{key[0]}, kCounts[i], " is not [B]");
    }
    expect.require(tensors.shape(tensors.input(kCapacity)).empty(), "capacity is not []");
    EvictParams p;
    p.batch = key[0], p.kv_heads = key[1], p.slots = key[2], p.head_dim = key[3];
    p.capacity = *tensors.data<int64_t>(tensors.input(kCapacity));
    expect.range("capacity", p.capacity, 0, kLargestDim);
    const auto counts = [&](size_t i) { return tensors.data<int64_t>(tensors.input(i)); };
    p.key = tensors.given_view(0, cache, key), p.value = tensors.given_view(1, cache, key);
    p.score = tensors.data<float>(tensors.input(2));
    p.score_stride_b = p.kv_heads * p.slots, p.score_stride_h = p.slots;
    p.length = counts(3), p.keep = counts(4), p.sinks = counts(5), p.recent = counts(6);
    const Shape kept{p.batch, p.kv_heads, p.capacity, p.head_dim};
    p.key_out = tensors.made_view(0, cache, kept), p.value_out = tensors.made_view(1, cache, kept);
    p.position_out = tensors.made<int32_t>(2, {p.batch, p.kv_heads, p.capacity});
    p.position_stride_b = p.kv_heads * p.capacity, p.position_stride_h = p.capacity;
    p.per_head = per_head != 0, p.merge = merge != 0 ? Merge::kNearestMean : Merge::kNone;
    run_cuda(p, tensors.workspace(3, cuda_workspace_size(p)), tensors.stream());
  }
};

}  // namespace

CustomOp device_evict_op(DType cache) { return device_op<DeviceEvict>(cache); }

}  // namespace vlkv::onnxruntime
