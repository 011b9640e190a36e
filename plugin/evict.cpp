// VlkvEvict: key, value [B, Hkv, C, D], score [B, Hkv, C], length, keep, sinks, recent [B], capacity [] ->
// new_key, new_value [B, Hkv, capacity, D], position [B, Hkv, capacity].
//
// capacity is a shape input: TensorRT reads its value on the host and passes it to getOutputShapes as an
// expression. It is the last input, so the others have the same index whether a method counts it or not.
#include "vlkv/evict.h"

#include "common.h"
#include "vlkv/cuda.h"

namespace vlkv::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

class EvictPlugin final : public Plugin {
 public:
  static constexpr const char* kName = "VlkvEvict";
  static inline const nvinfer1::PluginField kFields[] = {
      {"per_head", nullptr, nvinfer1::PluginFieldType::kINT32, 1},
      {"merge", nullptr, nvinfer1::PluginFieldType::kINT32, 1}};

  static EvictPlugin* create(const Attributes& attributes) {
    const int32_t per_head = attributes.flag("per_head");
    return new EvictPlugin(per_head, attributes.flag("merge"));
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return new EvictPlugin(per_head_, merge_); });
  }

  int32_t getNbOutputs() const noexcept override { return kOutputs; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                             int32_t input_count) const noexcept override {
    return status([&] {
      require_counts(inputs, input_count, outputs, output_count);
      for (int32_t i = 0; i < input_count; ++i) require_type(kInputNames[i], kIn[i], inputs[i], inputs[kKey]);
      outputs[kNewKey] = outputs[kNewValue] = inputs[kKey];
      outputs[kPosition] = DataType::kINT32;
    });
  }

  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs* shape_inputs,
                          int32_t shape_input_count, DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder&) noexcept override {
    return status([&] {
      require_counts(inputs, input_count, outputs, output_count);
      require(shape_input_count == 1 && shape_inputs != nullptr, kName, "has ", shape_input_count,
              " shape inputs, not 1: the ONNX node needs the attribute "
              "tensorrt_plugin_shape_input_indices = [7], which is capacity");
      require(shape_inputs[0].nbDims == 1 && shape_inputs[0].d[0] != nullptr, kName, "capacity has ",
              shape_inputs[0].nbDims, " values, not 1");
      for (int32_t i = 0; i < kData; ++i) require_rank(kName, kInputNames[i], inputs[i].nbDims, kRanks[i]);
      const nvinfer1::IDimensionExpr* const capacity = shape_inputs[0].d[0];
      require(!capacity->isConstant() || capacity->getConstantValue() >= 0, kName, "capacity is ",
              capacity->getConstantValue(), ", less than 0");
      const DimsExprs& key = inputs[kKey];
      outputs[kNewKey] = outputs[kNewValue] = {4, {key.d[0], key.d[1], capacity, key.d[3]}};
      outputs[kPosition] = {3, {key.d[0], key.d[1], capacity}};
    });
  }

  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override {
    return guarded(false, [&] {
      require_counts(tensors, input_count, tensors, output_count);
      require_position(kName, position, input_count + output_count);
      const PluginTensorDesc& tensor = tensors[position].desc;
      const Type type = position < input_count ? kIn[position] : kOut[position - input_count];
      return tensor.format == nvinfer1::TensorFormat::kLINEAR &&
             (position == kKey ? is_cache_type(tensor.type)
                               : takes(type, tensor.type, tensors[kKey].desc.type));
    });
  }

  int32_t configurePlugin(const DynamicPluginTensorDesc* in, int32_t input_count,
                          const DynamicPluginTensorDesc* out, int32_t output_count) noexcept override {
    return status([&] {
      require_counts(in, input_count, out, output_count);
      sizes([&](int32_t i) -> const PluginTensorDesc& { return in[i].desc; },
            [&](int32_t i) -> const PluginTensorDesc& { return out[i].desc; });
    });
  }

  size_t getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t input_count,
                          const DynamicPluginTensorDesc* out, int32_t output_count) const noexcept override {
    return guarded(size_t{0}, [&] {
      require_counts(in, input_count, out, output_count);
      require_rank(kName, "key", in[kKey].max.nbDims, kRanks[kKey]);
      const Dims& key = in[kKey].max;
      EvictParams p;
      p.batch = key.d[0], p.kv_heads = key.d[1], p.slots = key.d[2], p.head_dim = key.d[3];
      require_rank(kName, "new_key", out[kNewKey].max.nbDims, 4);
      p.capacity = out[kNewKey].max.d[2];
      p.per_head = per_head_ != 0, p.merge = static_cast<Merge>(merge_);
      return with_alignment(cuda_workspace_size(p));
    });
  }

  int32_t onShapeChange(const PluginTensorDesc* in, int32_t input_count, const PluginTensorDesc* out,
                        int32_t output_count) noexcept override {
    return status([&] {
      require_counts(in, input_count, out, output_count);
      void* const any = stand_in();
      const void* const inputs[] = {any, any, any, any, any, any, any, any};
      void* const outputs[] = {any, any, any};
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
  enum : int32_t { kKey, kValue, kScore, kLength, kKeep, kSinks, kRecent, kCapacity, kInputs };
  enum : int32_t { kNewKey, kNewValue, kPosition, kOutputs };
  static constexpr int32_t kData = kCapacity;  // the number of inputs whose memory is read
  enum class Type { kCache, kFloat32, kInt32, kInt64 };
  static constexpr const char* kInputNames[] = {"key",  "value", "score",  "length",
                                                "keep", "sinks", "recent", "capacity"};
  static constexpr const char* kOutputNames[] = {"new_key", "new_value", "position"};
  static constexpr int32_t kRanks[] = {4, 4, 3, 1, 1, 1, 1};
  static constexpr Type kIn[] = {Type::kCache, Type::kCache, Type::kFloat32, Type::kInt64,
                                 Type::kInt64, Type::kInt64, Type::kInt64,   Type::kInt64};
  static constexpr Type kOut[] = {Type::kCache, Type::kCache, Type::kInt32};

  EvictPlugin(int32_t per_head, int32_t merge)
      : Plugin(kName, "per_head=" + std::to_string(per_head) + ",merge=" + std::to_string(merge)),
        per_head_(per_head),
        merge_(merge) {
    serialize({{"per_head", &per_head_, nvinfer1::PluginFieldType::kINT32, 1},
               {"merge", &merge_, nvinfer1::PluginFieldType::kINT32, 1}});
  }

  static void require_counts(const void* in, int32_t input_count, const void* out, int32_t output_count) {
    require(input_count == kInputs || input_count == kData, kName, "has ", input_count, " inputs, not ",
            int32_t{kInputs}, " (or ", kData, " without capacity)");
    tensorrt::require_counts(kName, in, input_count, input_count, out, output_count, kOutputs);
  }

  // `cache` is the key's type, which the value and both new caches share.
  static bool takes(Type type, DataType given, DataType cache) noexcept {
    switch (type) {
      case Type::kCache:
        return is_cache_type(given) && given == cache;
      case Type::kFloat32:
        return given == DataType::kFLOAT;
      case Type::kInt32:
        return given == DataType::kINT32;
      default:
        return given == DataType::kINT64;
    }
  }

  static void require_type(const char* name, Type type, DataType given, DataType cache) {
    static constexpr const char* kTypes[] = {"float32, float16 or bfloat16 as the key is", "float32", "int32",
                                             "int64"};
    tensorrt::require_type(kName, name, takes(type, given, cache), given, kTypes[static_cast<int>(type)]);
  }

  // Checks types, ranks and that sizes agree. Unknown sizes stay -1.
  template <class In, class Out>
  static EvictParams sizes(const In& in, const Out& out) {
    const DataType cache = in(kKey).type;
    for (int32_t i = 0; i < kData; ++i) {
      require_type(kInputNames[i], kIn[i], in(i).type, cache);
      require_rank(kName, kInputNames[i], in(i).dims.nbDims, kRanks[i]);
    }
    const Dims& key = in(kKey).dims;
    const int64_t unknown = -1;
    int64_t shape[] = {key.d[0], key.d[1], key.d[2], key.d[3]};
    static constexpr const char* kLetters[] = {"B", "Hkv", "C", "D"};
    for (int32_t i = 0; i < kData; ++i) {
      for (int32_t axis = 0; axis < kRanks[i]; ++axis) {
        agree(kName, kInputNames[i], kLetters[axis], shape[axis], in(i).dims.d[axis]);
      }
    }
    int64_t made[] = {shape[0], shape[1], unknown, shape[3]};
    static constexpr const char* kMade[] = {"B", "Hkv", "capacity", "D"};
    for (int32_t i = 0; i < kOutputs; ++i) {
      require_type(kOutputNames[i], kOut[i], out(i).type, cache);
      require_rank(kName, kOutputNames[i], out(i).dims.nbDims, i == kPosition ? 3 : 4);
      for (int32_t axis = 0; axis < out(i).dims.nbDims; ++axis) {
        agree(kName, kOutputNames[i], kMade[axis], made[axis], out(i).dims.d[axis]);
      }
    }
    EvictParams p;
    p.batch = shape[0], p.kv_heads = shape[1], p.slots = shape[2], p.head_dim = shape[3];
    p.capacity = made[2];
    return p;
  }

  EvictParams params(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                     void* const* outputs) const {
    EvictParams p = sizes([&](int32_t i) -> const PluginTensorDesc& { return in[i]; },
                          [&](int32_t i) -> const PluginTensorDesc& { return out[i]; });
    const DType cache = cache_type(in[kKey].type);
    const auto counts = [&](int32_t i) { return static_cast<const int64_t*>(inputs[i]); };
    p.key = dense(inputs[kKey], cache, p.kv_heads, p.slots, p.head_dim);
    p.value = dense(inputs[kValue], cache, p.kv_heads, p.slots, p.head_dim);
    p.score = static_cast<const float*>(inputs[kScore]);
    p.score_stride_b = p.kv_heads * p.slots, p.score_stride_h = p.slots;
    p.length = counts(kLength), p.keep = counts(kKeep);
    p.sinks = counts(kSinks), p.recent = counts(kRecent);
    p.key_out = dense(outputs[kNewKey], cache, p.kv_heads, p.capacity, p.head_dim);
    p.value_out = dense(outputs[kNewValue], cache, p.kv_heads, p.capacity, p.head_dim);
    p.position_out = static_cast<int32_t*>(outputs[kPosition]);
    p.position_stride_b = p.kv_heads * p.capacity, p.position_stride_h = p.capacity;
    p.per_head = per_head_ != 0, p.merge = static_cast<Merge>(merge_);
    return p;
  }

  int32_t per_head_, merge_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface& evict_creator() noexcept {
  static Creator<EvictPlugin> creator;
  return creator;
}

}  // namespace vlkv::tensorrt
