// VlkvScore: query [B, Hq, W, D], key [B, Hkv, C, D], row_position [B, W] -> score [B, Hkv, C], sparsity [B].
#include <algorithm>

#include "common.h"
#include "vlkv/cuda.h"

namespace vlkv::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

class ScorePlugin final : public Plugin {
 public:
  static constexpr const char* kName = "VlkvScore";
  static inline const nvinfer1::PluginField kFields[] = {
      {"scale", nullptr, nvinfer1::PluginFieldType::kFLOAT32, 1},
      {"threshold", nullptr, nvinfer1::PluginFieldType::kFLOAT32, 1}};

  static ScorePlugin* create(const Attributes& attributes) {
    const float scale = attributes.number("scale");
    const float threshold = attributes.number("threshold");
    require_scale(kName, scale);
    require(threshold >= 0.0F && threshold <= 1.0F, kName, "attribute threshold is ", threshold,
            ", not in [0, 1]");
    return new ScorePlugin(scale, threshold);
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return new ScorePlugin(scale_, threshold_); });
  }

  int32_t getNbOutputs() const noexcept override { return kOutputs; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                             int32_t input_count) const noexcept override {
    return status([&] {
      require_counts(inputs, input_count, outputs, output_count);
      for (int32_t i = 0; i < kInputs; ++i) require_type(i, inputs[i], inputs[kQuery]);
      outputs[kScore - kInputs] = outputs[kSparsity - kInputs] = DataType::kFLOAT;
    });
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                          DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder&) noexcept override {
    return status([&] {
      require_counts(inputs, input_count, outputs, output_count);
      for (int32_t i = 0; i < kInputs; ++i) require_rank(kName, kTensors[i], inputs[i].nbDims, kRanks[i]);
      const DimsExprs& key = inputs[kKey];
      outputs[kScore - kInputs] = {3, {key.d[0], key.d[1], key.d[2]}};
      outputs[kSparsity - kInputs] = {1, {key.d[0]}};
    });
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override {
    return guarded(false, [&] {
      require_counts(tensors, input_count, tensors, output_count);
      require_position(kName, position, kInputs + kOutputs);
      const PluginTensorDesc& tensor = tensors[position].desc;
      return tensor.format == nvinfer1::TensorFormat::kLINEAR &&
             takes(position, tensor.type, tensors[kQuery].desc.type);
    });
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc* in, int32_t input_count,
                          const DynamicPluginTensorDesc* out, int32_t output_count) noexcept override {
    return status([&] {
      require_counts(in, input_count, out, output_count);
      for (int32_t i = 0; i < kInputs; ++i) require_type(i, in[i].desc.type, in[kQuery].desc.type);
      for (int32_t i = 0; i < kOutputs; ++i) {
        require_type(kInputs + i, out[i].desc.type, in[kQuery].desc.type);
      }
      sizes(in[kQuery].desc.dims, in[kKey].desc.dims, in[kRowPosition].desc.dims);
    });
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t input_count,
                          const DynamicPluginTensorDesc* out, int32_t output_count) const noexcept override {
    return guarded(size_t{0}, [&] {
      require_counts(in, input_count, out, output_count);
      const nvinfer1::Dims &query = in[kQuery].max, &key = in[kKey].max;
      require_rank(kName, "query", query.nbDims, kRanks[kQuery]);
      require_rank(kName, "key", key.nbDims, kRanks[kKey]);
      ScoreParams p;  // the largest of each: the inputs' ranges in a profile may differ
      p.batch = std::max(query.d[0], key.d[0]), p.query_heads = query.d[1], p.rows = query.d[2];
      p.kv_heads = key.d[1], p.slots = key.d[2];
      return with_alignment(cuda_workspace_size(p));
    });
  }

  int32_t onShapeChange(const PluginTensorDesc* in, int32_t input_count, const PluginTensorDesc* out,
                        int32_t output_count) noexcept override {
    return status([&] {
      require_counts(in, input_count, out, output_count);
      const void* inputs[kInputs] = {stand_in(), stand_in(), stand_in()};
      void* outputs[kOutputs] = {stand_in(), stand_in()};
      validate(params(in, out, inputs, outputs));
    });
  }

  int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return status([&] {
      require_arrays(kName, in, out, inputs, outputs);
      run_cuda(params(in, out, inputs, outputs), aligned(workspace), stream);
    });
  }

 private:
  enum : int32_t { kQuery, kKey, kRowPosition, kScore, kSparsity };
  static constexpr int32_t kInputs = 3, kOutputs = 2;
  static constexpr const char* kTensors[] = {"query", "key", "row_position", "score", "sparsity"};
  static constexpr int32_t kRanks[] = {4, 4, 2, 3, 1};

  ScorePlugin(float scale, float threshold)
      : Plugin(kName, describe(scale, threshold)), scale_(scale), threshold_(threshold) {
    serialize({{"scale", &scale_, nvinfer1::PluginFieldType::kFLOAT32, 1},
               {"threshold", &threshold_, nvinfer1::PluginFieldType::kFLOAT32, 1}});
  }

  static std::string describe(float scale, float threshold) {
    std::ostringstream text;
    text << std::hexfloat << "scale=" << scale << ",threshold=" << threshold;
    return text.str();
  }

  static void require_counts(const void* in, int32_t input_count, const void* out, int32_t output_count) {
    tensorrt::require_counts(kName, in, input_count, kInputs, out, output_count, kOutputs);
  }

  // `cache` is the query's type, which the key shares.
  static bool takes(int32_t tensor, DataType type, DataType cache) noexcept {
    switch (tensor) {
      case kQuery:
        return is_cache_type(type);
      case kKey:
        return type == cache;
      case kRowPosition:
        return type == DataType::kINT32 || type == DataType::kINT64;
      default:
        return type == DataType::kFLOAT;
    }
  }

  static void require_type(int32_t tensor, DataType type, DataType cache) {
    static constexpr const char* kTypes[] = {"float32, float16 or bfloat16", "the query's type",
                                             "int32 or int64", "float32", "float32"};
    tensorrt::require_type(kName, kTensors[tensor], takes(tensor, type, cache), type, kTypes[tensor]);
  }

  // Unknown sizes stay -1.
  static ScoreParams sizes(const nvinfer1::Dims& query, const nvinfer1::Dims& key,
                           const nvinfer1::Dims& row_position) {
    require_rank(kName, "query", query.nbDims, kRanks[kQuery]);
    require_rank(kName, "key", key.nbDims, kRanks[kKey]);
    require_rank(kName, "row_position", row_position.nbDims, kRanks[kRowPosition]);
    ScoreParams p;
    p.batch = query.d[0], p.query_heads = query.d[1], p.rows = query.d[2], p.head_dim = query.d[3];
    p.kv_heads = key.d[1], p.slots = key.d[2];
    agree(kName, "key", "B", p.batch, key.d[0]);
    agree(kName, "key", "D", p.head_dim, key.d[3]);
    agree(kName, "row_position", "B", p.batch, row_position.d[0]);
    agree(kName, "row_position", "W", p.rows, row_position.d[1]);
    require_groups(kName, p.query_heads, p.kv_heads, "key");
    return p;
  }

  ScoreParams params(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                     void* const* outputs) const {
    const DataType cache = in[kQuery].type;
    for (int32_t i = 0; i < kInputs; ++i) require_type(i, in[i].type, cache);
    for (int32_t i = 0; i < kOutputs; ++i) require_type(kInputs + i, out[i].type, cache);
    ScoreParams p = sizes(in[kQuery].dims, in[kKey].dims, in[kRowPosition].dims);
    p.query = dense(inputs[kQuery], cache_type(cache), p.query_heads, p.rows, p.head_dim);
    p.key = dense(inputs[kKey], cache_type(cache), p.kv_heads, p.slots, p.head_dim);
    p.row_position = inputs[kRowPosition];
    p.row_position_type = in[kRowPosition].type == DataType::kINT32 ? IndexType::kInt32 : IndexType::kInt64;
    p.row_position_stride_b = p.rows;
    p.scale = scale_, p.threshold = threshold_;
    p.score = static_cast<float*>(outputs[kScore - kInputs]);
    p.score_stride_b = p.kv_heads * p.slots, p.score_stride_h = p.slots;
    p.sparsity = static_cast<float*>(outputs[kSparsity - kInputs]);
    return p;
  }

  float scale_, threshold_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface& score_creator() noexcept {
  static Creator<ScorePlugin> creator;
  return creator;
}

}  // namespace vlkv::tensorrt
