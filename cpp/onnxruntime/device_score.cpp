// vlkv.native::DeviceScoreFloat16 and DeviceScoreBFloat16, operators of ONNX Runtime's CUDA provider over
// run_cuda(ScoreParams):
//
//   query [B, Hq, W, D], key [B, Hkv, C, D], row_position [B, W] int64
//   -> score [B, Hkv, C], sparsity [B] float32, workspace; attributes scale, threshold
#include "onnxruntime/device.h"

namespace vlkv::onnxruntime {
namespace {

struct DeviceScore {
  static constexpr const char* kName = "DeviceScore";
  static constexpr ElementType kInputs[] = {kCacheType, kCacheType, ElementType::kInt64};
  static constexpr ElementType kOutputs[] = {ElementType::kFloat, ElementType::kFloat, ElementType::kUint8};
  static constexpr size_t kHostInput = kNoInput;

  const Api* api;
  DType cache;
  float scale = 0.0F, threshold = 0.0F;

  DeviceScore(const Api* runtime, const KernelInfo* info, DType type) : api(runtime), cache(type) {
    check(api, Function::kKernelInfoGetAttributeFloat, info, "scale", &scale);
    check(api, Function::kKernelInfoGetAttributeFloat, info, "threshold", &threshold);
  }

  static void infer(const Inference& shapes) {
    shapes.first_sizes(0, ElementType::kFloat, 1, 3);
    shapes.first_sizes(1, ElementType::kFloat, 1, 1);
  }

  void compute(const DeviceTensors& tensors) const {
    const Shape query = tensors.shape(tensors.input(0)), key = tensors.shape(tensors.input(1));
    const Check expect("score");
    expect.require(query.size() == 4, "query is not [B, Hq, W, D]");
    expect.require(key.size() == 4 && key[0] == query[0] && key[3] == query[3],
                   "key is not [B, Hkv, C, D] of query's B and D");
    expect.require(tensors.shape(tensors.input(2)) == Shape{query[0], query[2]},
                   "row_position is not [B, W]");
    ScoreParams p;
    p.batch = query[0], p.query_heads = query[1], p.rows = query[2], p.head_dim = query[3];
    p.kv_heads = key[1], p.slots = key[2];
    p.query = tensors.given_view(0, cache, query), p.key = tensors.given_view(1, cache, key);
    p.row_position = tensors.data<void>(tensors.input(2)), p.row_position_stride_b = p.rows;
    p.scale = scale, p.threshold = threshold;
    p.score = tensors.made<float>(0, {p.batch, p.kv_heads, p.slots});
    p.score_stride_b = p.kv_heads * p.slots, p.score_stride_h = p.slots;
    p.sparsity = tensors.made<float>(1, {p.batch});
    run_cuda(p, tensors.workspace(2, cuda_workspace_size(p)), tensors.stream());
  }
};

}  // namespace

CustomOp device_score_op(DType cache) { return device_op<DeviceScore>(cache); }

}  // namespace vlkv::onnxruntime
