// vlkv.native::DeviceAttendFloat16 and DeviceAttendBFloat16, operators of ONNX Runtime's CUDA provider over
// run_cuda(AttendRowsParams):
//
//   query [B, Hq, S, D], key, value [B, Hkv, S, D], key_cache, value_cache [B, Hkv, C, D], length, count [B]
//   int64 -> result [B, Hq, S, D], new_key_cache, new_value_cache, workspace; attribute scale
//
// The new caches have to be bound to the memory of the old ones.
#include "onnxruntime/device.h"

namespace vlkv::onnxruntime {
namespace {

constexpr ElementType kInt64 = ElementType::kInt64, kUint8 = ElementType::kUint8;

struct DeviceAttend {
  static constexpr const char* kName = "DeviceAttend";
  static constexpr ElementType kInputs[] = {kCacheType, kCacheType, kCacheType, kCacheType,
                                            kCacheType, kInt64,     kInt64};
  static constexpr ElementType kOutputs[] = {kCacheType, kCacheType, kCacheType, kUint8};
  static constexpr size_t kHostInput = kNoInput;

  const Api* api;
  DType cache;
  float scale = 0.0F;

  DeviceAttend(const Api* runtime, const KernelInfo* info, DType type) : api(runtime), cache(type) {
    check(api, Function::kKernelInfoGetAttributeFloat, info, "scale", &scale);
  }

  static void infer(const Inference& shapes) {
    shapes.same(0, 0);
    shapes.same(1, 3);
    shapes.same(2, 4);
  }

  void compute(const DeviceTensors& tensors) const {
    const Shape query = tensors.shape(tensors.input(0)), slots = tensors.shape(tensors.input(3));
    const Check expect("attend");
    expect.require(query.size() == 4, "query is not [B, Hq, S, D]");
    expect.require(slots.size() == 4 && slots[0] == query[0] && slots[3] == query[3],
                   "key_cache is not [B, Hkv, C, D] of query's B and D");
    const Shape added{slots[0], slots[1], query[2], slots[3]}, prompts{slots[0]};
    expect.require(tensors.shape(tensors.input(1)) == added, "key is not [B, Hkv, S, D] of key_cache");
    expect.require(tensors.shape(tensors.input(2)) == added, "value is not [B, Hkv, S, D] of key_cache");
    expect.require(tensors.shape(tensors.input(4)) == slots, "value_cache has not key_cache's shape");
    expect.require(tensors.shape(tensors.input(5)) == prompts, "length is not [B]");
    expect.require(tensors.shape(tensors.input(6)) == prompts, "count is not [B]");
    AttendRowsParams p;
    p.batch = query[0], p.query_heads = query[1], p.rows = query[2], p.head_dim = query[3];
    p.kv_heads = slots[1], p.slots = slots[2];
    p.query = tensors.given_view(0, cache, query);
    p.key = tensors.given_view(1, cache, added), p.value = tensors.given_view(2, cache, added);
    p.key_cache = in_place(tensors, 3, 1, "new_key_cache", slots);
    p.value_cache = in_place(tensors, 4, 2, "new_value_cache", slots);
    p.length = tensors.data<int64_t>(tensors.input(5));
    p.count = tensors.data<int64_t>(tensors.input(6));
    p.scale = scale;
    p.result = tensors.made_view(0, cache, query);
    run_cuda(p, tensors.workspace(3, cuda_workspace_size(p)), tensors.stream());
  }

 private:
  View in_place(const DeviceTensors& tensors, size_t input, size_t output, const char* name,
                const Shape& shape) const {
    const View made = tensors.made_view(output, cache, shape);
    Check("attend").require(made.data == tensors.data<void>(tensors.input(input)) || shape[2] == 0, name,
                            " does not share the memory of its input: bind both to one address");
    return made;
  }
};

}  // namespace

CustomOp device_attend_op(DType cache) { return device_op<DeviceAttend>(cache); }

}  // namespace vlkv::onnxruntime
