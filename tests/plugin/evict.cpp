// Every method of VlkvEvict.
#include "harness.h"

namespace {

const DataType kCaches[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
constexpr int32_t kInputs = 8, kOutputs = 3;

// Tensors of Evict: key, value, score, length, keep, sinks, recent, capacity; new_key, new_value, position.
std::vector<PluginTensorDesc> tensors(int64_t b, int64_t hkv, int64_t c, int64_t d, int64_t capacity,
                                      DataType cache = DataType::kHALF) {
  const PluginTensorDesc whole = tensor(cache, {b, hkv, c, d}), kept = tensor(cache, {b, hkv, capacity, d});
  const PluginTensorDesc count = tensor(DataType::kINT64, {b});
  return {whole,
          whole,
          tensor(DataType::kFLOAT, {b, hkv, c}),
          count,
          count,
          count,
          count,
          tensor(DataType::kINT64, {}),
          kept,
          kept,
          tensor(DataType::kINT32, {b, hkv, capacity})};
}

void check_types(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  using Types = std::vector<DataType>;
  const DataType f32 = DataType::kFLOAT, f16 = DataType::kHALF, i64 = DataType::kINT64,
                 i32 = DataType::kINT32;
  DataType out[kOutputs]{};
  const auto types = [&](const Types& in) {
    return build.getOutputDataTypes(out, kOutputs, in.data(), static_cast<int32_t>(in.size())) == 0;
  };
  for (const DataType cache : kCaches) {
    h.accepts("VlkvEvict output types", [&] {
      return types({cache, cache, f32, i64, i64, i64, i64, i64}) && out[0] == cache && out[1] == cache &&
             out[2] == i32;
    });
  }
  h.accepts("VlkvEvict output types, capacity not counted",
            [&] { return types({f16, f16, f32, i64, i64, i64, i64}); });
  h.refuses("int8 key", {"key is", "(2)"},
            [&] { return types({DataType::kINT8, DataType::kINT8, f32, i64, i64, i64, i64, i64}); });
  h.refuses("types differ", {"value is float32", "as the key is"},
            [&] { return types({f16, f32, f32, i64, i64, i64, i64, i64}); });
  h.refuses("float16 score", {"score is float16"},
            [&] { return types({f16, f16, f16, i64, i64, i64, i64, i64}); });
  const char* const names[] = {"length", "keep", "sinks", "recent", "capacity"};
  for (size_t i = 3; i < 8; ++i) {
    Types in{f16, f16, f32, i64, i64, i64, i64, i64};
    in[i] = i32;
    h.refuses("int32 count", {names[i - 3], "is int32", "not int64"}, [&] { return types(in); });
  }
  h.refuses("types of 6 inputs", {"6 inputs"}, [&] { return types({f16, f16, f32, i64, i64, i64}); });
  h.refuses("types null", {"null"}, [&] { return build.getOutputDataTypes(nullptr, 3, nullptr, 8) == 0; });
}

void check_shapes(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  Expressions e;
  DimsExprs out[kOutputs]{};
  const DimsExprs key = e.dims({-1, 8, -1, 128}), score = e.dims({-1, 8, -1}), count = e.dims({-1});
  const std::vector<DimsExprs> right{key, key, score, count, count, count, count, e.dims({})};
  const auto shapes = [&](const std::vector<DimsExprs>& in, const std::vector<DimsExprs>& shape,
                          int32_t n = 8) {
    return build.getOutputShapes(in.data(), n, shape.data(), static_cast<int32_t>(shape.size()), out,
                                 kOutputs, e) == 0;
  };
  for (const int64_t slots : {-1, 0, 1, 410}) {
    for (const int32_t counted : {7, 8}) {
      h.accepts("VlkvEvict output shapes, capacity = " + std::to_string(slots), [&] {
        const DimsExprs capacity = e.dims({slots});
        bool same = shapes(right, {capacity}, counted);
        for (int i = 0; i < 2; ++i) {
          same = same && out[i].nbDims == 4 && out[i].d[0] == key.d[0] && out[i].d[1] == key.d[1] &&
                 out[i].d[2] == capacity.d[0] && out[i].d[3] == key.d[3];
        }
        return same && out[2].nbDims == 3 && out[2].d[0] == key.d[0] && out[2].d[1] == key.d[1] &&
               out[2].d[2] == capacity.d[0];
      });
    }
  }
  h.refuses("capacity below 0", {"capacity is -3"}, [&] {
    DimsExprs capacity{1, {e.make(true, -3)}};
    return shapes(right, {capacity});
  });
  h.refuses("no shape input", {"0 shape inputs", "tensorrt_plugin_shape_input_indices"},
            [&] { return shapes(right, {}); });
  h.refuses("two shape inputs", {"2 shape inputs"}, [&] { return shapes(right, {count, count}); });
  h.refuses("capacity of 2 values", {"capacity has 2 values"},
            [&] { return shapes(right, {e.dims({1, 2})}); });
  const char* const names[] = {"key", "value", "score", "length", "keep", "sinks", "recent"};
  for (size_t i = 0; i < 7; ++i) {
    auto wrong = right;
    wrong[i] = e.dims({1, 2});
    h.refuses("wrong rank", {names[i], "has rank 2"}, [&] { return shapes(wrong, {count}); });
  }
  h.refuses("shapes of 2 inputs", {"2 inputs"}, [&] { return shapes(right, {count}, 2); });
  h.refuses("shapes null", {"null"},
            [&] { return build.getOutputShapes(nullptr, 8, nullptr, 1, out, kOutputs, e) == 0; });
  h.refuses("shape input null", {"shape inputs"},
            [&] { return build.getOutputShapes(right.data(), 8, nullptr, 1, out, kOutputs, e) == 0; });
}

void check_formats(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  for (const int32_t inputs : {kInputs, kInputs - 1}) {
    Combinations all;
    std::vector<DynamicPluginTensorDesc> none;
    combinations(build, inputs, kOutputs, none, all);
    std::vector<std::vector<DataType>> wanted;
    for (const DataType cache : kCaches) {
      auto& types = wanted.emplace_back(3, cache);
      types[2] = DataType::kFLOAT;
      types.insert(types.end(), static_cast<size_t>(inputs) - 3, DataType::kINT64);
      types.insert(types.end(), {cache, cache, DataType::kINT32});
    }
    h.check(all.only_linear && all.found == wanted,
            "VlkvEvict supports 3 combinations of " + std::to_string(all.asked) + " asked");
  }
  const auto some = ranges(tensors(1, 2, 9, 8, 4));
  for (const int32_t position : {-1, 11}) {
    h.refuses("position outside", {"position is", "[0, 11)"},
              [&] { return build.supportsFormatCombination(position, some.data(), kInputs, kOutputs); });
  }
  h.refuses("formats null", {"null"}, [&] { return build.supportsFormatCombination(0, nullptr, 8, 3); });
  h.refuses("formats of 2 outputs", {"2 outputs"},
            [&] { return build.supportsFormatCombination(0, some.data(), 8, 2); });
}

void check_sizes(Harness& h, const Made& made) {
  auto& build = made.build();
  auto& runtime = made.runtime();
  const auto configure = [&](const std::vector<PluginTensorDesc>& all) {
    const auto given = ranges(all);
    return build.configurePlugin(given.data(), kInputs, given.data() + kInputs, kOutputs) == 0;
  };
  const auto change = [&](const std::vector<PluginTensorDesc>& all) {
    return runtime.onShapeChange(all.data(), kInputs, all.data() + kInputs, kOutputs) == 0;
  };
  h.accepts("VlkvEvict configured, sizes unknown", [&] { return configure(tensors(-1, 8, -1, 128, -1)); });
  h.accepts("VlkvEvict configured, all unknown", [&] { return configure(tensors(-1, -1, -1, -1, -1)); });
  for (const DataType cache : kCaches) {
    h.accepts("VlkvEvict takes odd sizes", [&] { return change(tensors(3, 5, 77, 33, 13, cache)); });
  }
  h.accepts("VlkvEvict takes capacity = 0", [&] { return change(tensors(1, 8, 64, 128, 0)); });
  h.accepts("VlkvEvict takes C = 0", [&] { return change(tensors(1, 8, 0, 128, 16)); });
  h.accepts("VlkvEvict takes B = 0", [&] { return change(tensors(0, 8, 64, 128, 16)); });
  h.accepts("VlkvEvict takes capacity above C", [&] { return change(tensors(1, 8, 64, 128, 100)); });
  h.accepts("VlkvEvict, capacity not counted", [&] {
    auto all = tensors(1, 8, 64, 128, 16);
    all.erase(all.begin() + 7);
    return runtime.onShapeChange(all.data(), 7, all.data() + 7, kOutputs) == 0;
  });

  using Call = std::function<bool(const std::vector<PluginTensorDesc>&)>;
  for (const bool configured : {true, false}) {
    const std::string way = configured ? "configured" : "at run time";
    const Call call = configured ? Call(configure) : Call(change);
    const auto refuses = [&](std::initializer_list<const char*> texts, size_t i, PluginTensorDesc with) {
      auto all = tensors(2, 4, 9, 8, 3);
      all[i] = with;
      h.refuses(way, texts, [&] { return call(all); });
    };
    const DataType f16 = DataType::kHALF, f32 = DataType::kFLOAT, i64 = DataType::kINT64;
    refuses({"key has rank 3"}, 0, tensor(f16, {2, 4, 9}));
    refuses({"value has C = 10", "9"}, 1, tensor(f16, {2, 4, 10, 8}));
    refuses({"value has D = 7", "8"}, 1, tensor(f16, {2, 4, 9, 7}));
    refuses({"score has Hkv = 5", "4"}, 2, tensor(f32, {2, 5, 9}));
    refuses({"length has B = 3", "2"}, 3, tensor(i64, {3}));
    refuses({"keep has rank 2"}, 4, tensor(i64, {2, 1}));
    refuses({"sinks is int32"}, 5, tensor(DataType::kINT32, {2}));
    refuses({"recent has B = 1", "2"}, 6, tensor(i64, {1}));
    refuses({"new_key is float32"}, 8, tensor(f32, {2, 4, 3, 8}));
    refuses({"new_value has capacity = 4", "3"}, 9, tensor(f16, {2, 4, 4, 8}));
    refuses({"position has capacity = 2", "3"}, 10, tensor(DataType::kINT32, {2, 4, 2}));
    refuses({"position is int64"}, 10, tensor(i64, {2, 4, 3}));
  }
  h.refuses("head_dim beyond the limit", {"head_dim is 5000", "4096"},
            [&] { return change(tensors(1, 2, 9, 5000, 3)); });
  h.refuses("unknown at run time", {"capacity is -1"}, [&] { return change(tensors(1, 2, 9, 8, -1)); });
  h.refuses("run time null", {"null"}, [&] { return runtime.onShapeChange(nullptr, 8, nullptr, 3) == 0; });
  h.refuses("configured null", {"null"}, [&] { return build.configurePlugin(nullptr, 8, nullptr, 3) == 0; });
}

size_t workspace(nvinfer1::IPluginV3OneBuild& build, const std::vector<PluginTensorDesc>& all) {
  const auto sized = ranges(all);
  return build.getWorkspaceSize(sized.data(), kInputs, sized.data() + kInputs, kOutputs);
}

void check_enqueue(Harness& h, nvinfer1::IPluginV3OneRuntime& runtime) {
  const auto all = tensors(1, 2, 9, 8, 3);
  alignas(256) static char memory[4096];
  const void* in[] = {memory, memory, memory, memory, memory, memory, memory, nullptr};
  void* out[] = {memory, memory, memory};
  const auto run = [&](const PluginTensorDesc* descs, const void* const* from, void* const* to) {
    return runtime.enqueue(descs, all.data() + kInputs, from, to, memory + 8, nullptr) == 0;
  };
  h.refuses("enqueue null", {"null"}, [&] { return run(nullptr, in, out); });
  h.refuses("enqueue null", {"null"}, [&] { return run(all.data(), nullptr, out); });
  h.refuses("enqueue null", {"null"}, [&] { return run(all.data(), in, nullptr); });
  void* without_position[] = {memory, memory, nullptr};
  h.refuses("enqueue, position null", {"position_out is null"},
            [&] { return run(all.data(), in, without_position); });
  if (h.refusal != nullptr) {
    h.refuses("enqueue", {h.refusal}, [&] { return run(all.data(), in, out); });
  }
}

}  // namespace

void check_evict(Harness& h, nvinfer1::IPluginCreatorV3One& creator) {
  const int32_t one = 1, zero = 0;
  const PluginFieldType i32 = PluginFieldType::kINT32, i64 = PluginFieldType::kINT64;
  const std::vector<PluginField> fields{{"per_head", &one, i32, 1}, {"merge", &zero, i32, 1}};
  const std::vector<PluginField> others{{"per_head", &zero, i32, 1}, {"merge", &one, i32, 1}};
  check_common(h, creator, "VlkvEvict", fields, others);
  const int64_t long_one = 1, long_many = int64_t{1} << 32;
  h.accepts("VlkvEvict takes int64 attributes", [&] {
    return Made(create(creator, {{"per_head", &long_one, i64, 1}, {"merge", &long_one, i64, 1}})).plugin !=
           nullptr;
  });
  h.refuses("merge", {"merge is 4294967296", "not 0 or 1"},
            [&] { return create(creator, {{"per_head", &one, i32, 1}, {"merge", &long_many, i64, 1}}); });
  for (const int32_t value : {-1, 2}) {
    h.refuses("per_head", {"per_head is", "not 0 or 1"},
              [&] { return create(creator, {{"per_head", &value, i32, 1}, {"merge", &zero, i32, 1}}); });
    h.refuses("merge", {"merge is", "not 0 or 1"},
              [&] { return create(creator, {{"per_head", &one, i32, 1}, {"merge", &value, i32, 1}}); });
  }
  const Made made(create(creator, fields)), shared(create(creator, others));
  h.check(made.build().getNbOutputs() == kOutputs, "VlkvEvict has 3 outputs");
  check_types(h, made.build());
  check_shapes(h, made.build());
  check_formats(h, made.build());
  check_sizes(h, made);
  h.check(workspace(made.build(), tensors(4, 8, 4096, 128, 400)) == 0,
          "VlkvEvict needs no workspace where each head selects");
  const size_t needed = workspace(shared.build(), tensors(4, 8, 4096, 128, 400));
  h.check(needed >= 4 * 4096 * sizeof(float) && needed < 8 * 4096 * sizeof(float),
          "VlkvEvict's workspace, one selection for all heads: " + std::to_string(needed) + " bytes");
  const size_t parted = workspace(made.build(), tensors(1, 8, 131072, 128, 13107));
  h.check(parted >= 8 * 131072 * sizeof(uint32_t) && parted < 12 * 131072 * sizeof(uint32_t),
          "VlkvEvict's workspace, several blocks a selection: " + std::to_string(parted) + " bytes");
  check_enqueue(h, made.runtime());
}
