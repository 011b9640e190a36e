// VlkvAttend: query [B, Hq, S, D], key, value [B, Hkv, S, D], key_cache, value_cache [B, Hkv, C, D],
// length, count [B] -> result [B, Hq, S, D], new_key_cache, new_value_cache, which share the caches' memory.
#include <algorithm>

#include "common.h"
#include "vlkv/cuda.h"

namespace vlkv::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

class AttendPlugin final : public PluginOf<nvinfer1::IPluginV3OneBuildV2> {
 public:
  static constexpr const char* kName = "VlkvAttend";
  static inline const nvinfer1::PluginField kFields[] = {
      {"scale", nullptr, nvinfer1::PluginFieldType::kFLOAT32, 1}};

  static AttendPlugin* create(const Attributes& attributes) {
    const float scale = attributes.number("scale");
    require_scale(kName, scale);
    return new AttendPlugin(scale);
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return new AttendPlugin(scale_); });
  }

  int32_t getNbOutputs() const noexcept override { return kOutputs; }

  int32_t getAliasedInput(int32_t output) noexcept override {
    if (output == kNewKeyCache - kInputs) return kKeyCache;
    return output == kNewValueCache - kInputs ? kValueCache : -1;
  }

  int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                             int32_t input_count) const noexcept override {
    return status([&] {
      require_counts(inputs, input_count, outputs, output_count);
      for (int32_t i = 0; i < kInputs; ++i) require_type(i, inputs[i], inputs[kQuery]);
      std::fill(outputs, outputs + kOutputs, inputs[kQuery]);
    });
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                          DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder&) noexcept override {
    return status([&] {
      require_counts(inputs, input_count, outputs, output_count);
      for (int32_t i = 0; i < kInputs; ++i) require_rank(kName, kTensors[i], inputs[i].nbDims, kRanks[i]);
      outputs[kResult - kInputs] = inputs[kQuery];
      outputs[kNewKeyCache - kInputs] = inputs[kKeyCache];
      outputs[kNewValueCache - kInputs] = inputs[kValueCache];
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
      sizes([&](int32_t i) -> const PluginTensorDesc& {
        return i < kInputs ? in[i].desc : out[i - kInputs].desc;
      });
    });
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t input_count,
                          const DynamicPluginTensorDesc* out, int32_t output_count) const noexcept override {
    return guarded(size_t{0}, [&] {
      require_counts(in, input_count, out, output_count);
      for (const int32_t i : {kQuery, kKeyCache}) {
        require_rank(kName, kTensors[i], in[i].max.nbDims, kRanks[i]);
      }
      const Dims &query = in[kQuery].max, &cache = in[kKeyCache].max;
      AttendRowsParams p;  // the largest of each: the inputs' ranges in a profile may differ
      p.batch = std::max(query.d[0], cache.d[0]), p.query_heads = query.d[1], p.rows = query.d[2];
      p.kv_heads = cache.d[1], p.slots = cache.d[2], p.head_dim = std::max(query.d[3], cache.d[3]);
      return with_alignment(cuda_workspace_size(p));
    });
  }

  int32_t onShapeChange(const PluginTensorDesc* in, int32_t input_count, const PluginTensorDesc* out,
                        int32_t output_count) noexcept override {
    return status([&] {
      require_counts(in, input_count, out, output_count);
      const std::vector<const void*> inputs(kInputs, stand_in());
      const std::vector<void*> outputs(kOutputs, stand_in());
      validate(params(in, out, inputs.data(), outputs.data()));
    });
  }

  int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return status([&] {
      require_arrays(kName, in, out, inputs, outputs);
      for (const int32_t output : {kNewKeyCache, kNewValueCache}) {
        require(
            outputs[output - kInputs] == inputs[getAliasedInput(output - kInputs)], kName, kTensors[output],
            " does not share the memory of its input: build with PreviewFeature::kALIASED_PLUGIN_IO_10_03, "
            "and bind both to one address");
      }
      run_cuda(params(in, out, inputs, outputs), aligned(workspace), stream);
    });
  }

 private:
  enum : int32_t {
    kQuery,
    kKey,
    kValue,
    kKeyCache,
    kValueCache,
    kLength,
    kCount,
    kResult,
    kNewKeyCache,
    kNewValueCache
  };
  static constexpr int32_t kInputs = 7, kOutputs = 3;
  static constexpr const char* kTensors[] = {"query",  "key",   "value",  "key_cache",     "value_cache",
                                             "length", "count", "result", "new_key_cache", "new_value_cache"};
  static constexpr int32_t kRanks[] = {4, 4, 4, 4, 4, 1, 1, 4, 4, 4};

  explicit AttendPlugin(float scale) : PluginOf(kName, describe(scale)), scale_(scale) {
    serialize({{"scale", &scale_, nvinfer1::PluginFieldType::kFLOAT32, 1}});
  }

  static std::string describe(float scale) {
    std::ostringstream text;
    text << std::hexfloat << "scale=" << scale;
    return text.str();
  }

  static void require_counts(const void* in, int32_t input_count, const void* out, int32_t output_count) {
    tensorrt::require_counts(kName, in, input_count, kInputs, out, output_count, kOutputs);
  }

  // `cache` is the query's type, which all tensors but length and count share.
  static bool takes(int32_t tensor, DataType type, DataType cache) noexcept {
    if (tensor == kLength || tensor == kCount) return type == DataType::kINT64;
    return tensor == kQuery ? type == DataType::kHALF || type == DataType::kBF16 : type == cache;
  }

  static void require_type(int32_t tensor, DataType type, DataType cache) {
    const char* const wanted = tensor == kLength || tensor == kCount ? "int64"
                               : tensor == kQuery                    ? "float16 or bfloat16"
                                                                     : "the query's type";
    tensorrt::require_type(kName, kTensors[tensor], takes(tensor, type, cache), type, wanted);
  }

  // Checks types, ranks and that sizes agree. Unknown sizes stay -1.
  template <class Tensors>
  static AttendRowsParams sizes(const Tensors& tensor) {
    for (int32_t i = 0; i < kInputs + kOutputs; ++i) {
      require_type(i, tensor(i).type, tensor(kQuery).type);
      require_rank(kName, kTensors[i], tensor(i).dims.nbDims, kRanks[i]);
    }
    AttendRowsParams p;
    const Dims &query = tensor(kQuery).dims, &cache = tensor(kKeyCache).dims;
    p.batch = query.d[0], p.query_heads = query.d[1], p.rows = query.d[2], p.head_dim = query.d[3];
    p.kv_heads = cache.d[1], p.slots = cache.d[2];
    for (int32_t i = 0; i < kInputs + kOutputs; ++i) {
      const Dims& dims = tensor(i).dims;
      agree(kName, kTensors[i], "B", p.batch, dims.d[0]);
      if (kRanks[i] == 1) continue;
      const bool of_query = i == kQuery || i == kResult, of_cache = i != kKey && i != kValue && !of_query;
      agree(kName, kTensors[i], of_query ? "Hq" : "Hkv", of_query ? p.query_heads : p.kv_heads, dims.d[1]);
      agree(kName, kTensors[i], of_cache ? "C" : "S", of_cache ? p.slots : p.rows, dims.d[2]);
      agree(kName, kTensors[i], "D", p.head_dim, dims.d[3]);
    }
    require_groups(kName, p.query_heads, p.kv_heads, "key_cache");
    return p;
  }

  AttendRowsParams params(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                          void* const* outputs) const {
    AttendRowsParams p =
        sizes([&](int32_t i) -> const PluginTensorDesc& { return i < kInputs ? in[i] : out[i - kInputs]; });
    const DType type = cache_type(in[kQuery].type);
    p.query = dense(inputs[kQuery], type, p.query_heads, p.rows, p.head_dim);
    p.key = dense(inputs[kKey], type, p.kv_heads, p.rows, p.head_dim);
    p.value = dense(inputs[kValue], type, p.kv_heads, p.rows, p.head_dim);
    p.key_cache = dense(outputs[kNewKeyCache - kInputs], type, p.kv_heads, p.slots, p.head_dim);
    p.value_cache = dense(outputs[kNewValueCache - kInputs], type, p.kv_heads, p.slots, p.head_dim);
    p.length = static_cast<const int64_t*>(inputs[kLength]);
    p.count = static_cast<const int64_t*>(inputs[kCount]);
    p.scale = scale_;
    p.result = dense(outputs[kResult - kInputs], type, p.query_heads, p.rows, p.head_dim);
    return p;
  }

  float scale_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface& attend_creator() noexcept {
  static Creator<AttendPlugin> creator;
  return creator;
}

}  // namespace vlkv::tensorrt
