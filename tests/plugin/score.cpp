// Every method of VlkvScore.
#include <cmath>
#include <limits>

#include "harness.h"

namespace {

const DataType kCaches[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
const DataType kIndices[] = {DataType::kINT32, DataType::kINT64};

// Tensors of Score: query, key, row_position, score, sparsity.
std::vector<PluginTensorDesc> tensors(int64_t b, int64_t hq, int64_t hkv, int64_t w, int64_t c, int64_t d,
                                      DataType cache = DataType::kHALF, DataType index = DataType::kINT64) {
  return {tensor(cache, {b, hq, w, d}), tensor(cache, {b, hkv, c, d}), tensor(index, {b, w}),
          tensor(DataType::kFLOAT, {b, hkv, c}), tensor(DataType::kFLOAT, {b})};
}

void check_types(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  using Types = std::vector<DataType>;
  DataType out[2]{};
  const auto types = [&](const Types& in) { return build.getOutputDataTypes(out, 2, in.data(), 3) == 0; };
  for (const DataType cache : kCaches) {
    for (const DataType index : kIndices) {
      h.accepts("VlkvScore output types", [&] {
        out[0] = out[1] = DataType::kINT8;
        return types({cache, cache, index}) && out[0] == DataType::kFLOAT && out[1] == DataType::kFLOAT;
      });
    }
  }
  const DataType f32 = DataType::kFLOAT, f16 = DataType::kHALF, i64 = DataType::kINT64;
  h.refuses("int8 query", {"query is", "(2)"},
            [&] { return types({DataType::kINT8, DataType::kINT8, i64}); });
  h.refuses("types differ", {"key is float16", "query's type"}, [&] { return types({f32, f16, i64}); });
  h.refuses("float row_position", {"row_position is float32"}, [&] { return types({f32, f32, f32}); });
  const DataType in[] = {f32, f32, i64};
  h.refuses("types null", {"null"}, [&] { return build.getOutputDataTypes(nullptr, 2, in, 3) == 0; });
  h.refuses("types null", {"null"}, [&] { return build.getOutputDataTypes(out, 2, nullptr, 3) == 0; });
  h.refuses("types of 2 inputs", {"2 inputs", "not 3"},
            [&] { return build.getOutputDataTypes(out, 2, in, 2) == 0; });
  h.refuses("types of 3 outputs", {"3 outputs", "not 2"},
            [&] { return build.getOutputDataTypes(out, 3, in, 3) == 0; });
}

void check_shapes(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  Expressions e;
  DimsExprs out[2]{};
  const auto shapes = [&](std::vector<DimsExprs> in, int32_t count = 3, int32_t made = 2) {
    return build.getOutputShapes(in.data(), count, nullptr, 0, out, made, e) == 0;
  };
  for (const int64_t rows : {0, 1, 7, -1}) {
    h.accepts("VlkvScore output shapes, W = " + std::to_string(rows), [&] {
      const DimsExprs key = e.dims({-1, 8, -1, 128});
      return shapes({e.dims({-1, 32, rows, 128}), key, e.dims({-1, rows})}) && out[0].nbDims == 3 &&
             out[0].d[0] == key.d[0] && out[0].d[1]->getConstantValue() == 8 && out[0].d[2] == key.d[2] &&
             !out[0].d[2]->isConstant() && out[1].nbDims == 1 && out[1].d[0] == key.d[0];
    });
  }
  const DimsExprs query = e.dims({1, 4, 2, 8}), key = e.dims({1, 2, 9, 8}), rows = e.dims({1, 2});
  h.refuses("query of rank 3", {"query has rank 3", "not 4"},
            [&] { return shapes({e.dims({1, 2, 8}), key, rows}); });
  h.refuses("key of rank 5", {"key has rank 5"},
            [&] { return shapes({query, e.dims({1, 1, 2, 9, 8}), rows}); });
  h.refuses("row_position of rank 1", {"row_position has rank 1"},
            [&] { return shapes({query, key, e.dims({2})}); });
  h.refuses("shapes of 4 inputs", {"4 inputs"}, [&] { return shapes({query, key, rows, rows}, 4); });
  h.refuses("shapes of 1 output", {"1 outputs"}, [&] { return shapes({query, key, rows}, 3, 1); });
  h.refuses("shapes null", {"null"},
            [&] { return build.getOutputShapes(nullptr, 3, nullptr, 0, out, 2, e) == 0; });
}

void check_formats(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  Combinations all;
  std::vector<DynamicPluginTensorDesc> none;
  combinations(build, 3, 2, none, all);
  std::vector<std::vector<DataType>> wanted;
  for (const DataType cache : kCaches) {
    for (const DataType index : kIndices) wanted.push_back({cache, cache, index, kCaches[0], kCaches[0]});
  }
  h.check(all.only_linear && all.found == wanted,
          "VlkvScore supports 6 combinations of " + std::to_string(all.asked) + " asked");
  const auto some = ranges(tensors(1, 4, 2, 3, 9, 8));
  for (const int32_t position : {-1, 5}) {
    h.refuses("position outside", {"position is", "[0, 5)"},
              [&] { return build.supportsFormatCombination(position, some.data(), 3, 2); });
  }
  h.refuses("formats null", {"null"}, [&] { return build.supportsFormatCombination(0, nullptr, 3, 2); });
  h.refuses("formats of 2 inputs", {"2 inputs"},
            [&] { return build.supportsFormatCombination(0, some.data(), 2, 2); });
}

void check_sizes(Harness& h, const Made& made) {
  auto& build = made.build();
  auto& runtime = made.runtime();
  const auto configure = [&](const std::vector<PluginTensorDesc>& all) {
    const auto given = ranges(all);
    return build.configurePlugin(given.data(), 3, given.data() + 3, 2) == 0;
  };
  const auto change = [&](const std::vector<PluginTensorDesc>& all) {
    return runtime.onShapeChange(all.data(), 3, all.data() + 3, 2) == 0;
  };
  h.accepts("VlkvScore configured, sizes unknown",
            [&] { return configure(tensors(-1, 32, 8, -1, -1, 128)); });
  h.accepts("VlkvScore configured, all unknown", [&] { return configure(tensors(-1, -1, -1, -1, -1, -1)); });
  for (const DataType cache : kCaches) {
    for (const DataType index : kIndices) {
      h.accepts("VlkvScore takes odd sizes",
                [&] { return change(tensors(3, 6, 2, 5, 77, 33, cache, index)); });
    }
  }
  h.accepts("VlkvScore takes W = 0", [&] { return change(tensors(1, 32, 8, 0, 4096, 128)); });
  h.accepts("VlkvScore takes C = 0", [&] { return change(tensors(1, 32, 8, 1, 0, 128)); });
  h.accepts("VlkvScore takes B = 0", [&] { return change(tensors(0, 32, 8, 1, 16, 128)); });
  h.accepts("VlkvScore takes C = 131072", [&] { return change(tensors(1, 32, 8, 1024, 131072, 128)); });

  using Call = std::function<bool(const std::vector<PluginTensorDesc>&)>;
  for (const bool configured : {true, false}) {
    const std::string way = configured ? "configured" : "at run time";
    const Call call = configured ? Call(configure) : Call(change);
    const auto refuses = [&](std::initializer_list<const char*> texts, size_t i, PluginTensorDesc with) {
      auto all = tensors(2, 4, 2, 3, 9, 8);
      all[i] = with;
      h.refuses(way, texts, [&] { return call(all); });
    };
    const DataType f16 = DataType::kHALF, i64 = DataType::kINT64;
    refuses({"query has rank 3"}, 0, tensor(f16, {2, 4, 3}));
    refuses({"key has rank 2"}, 1, tensor(f16, {2, 4}));
    refuses({"row_position has rank 3"}, 2, tensor(i64, {2, 3, 1}));
    refuses({"key has B = 5", "2"}, 1, tensor(f16, {5, 2, 9, 8}));
    refuses({"key has D = 7", "8"}, 1, tensor(f16, {2, 2, 9, 7}));
    refuses({"row_position has W = 4", "3"}, 2, tensor(i64, {2, 4}));
    refuses({"row_position has B = 1", "2"}, 2, tensor(i64, {1, 3}));
    refuses({"Hq = 4", "Hkv = 3"}, 1, tensor(f16, {2, 3, 9, 8}));
    refuses({"query is int32"}, 0, tensor(DataType::kINT32, {2, 4, 3, 8}));
    refuses({"key is float32"}, 1, tensor(DataType::kFLOAT, {2, 2, 9, 8}));
    refuses({"score is float16"}, 3, tensor(f16, {2, 2, 9}));
    refuses({"sparsity is int64"}, 4, tensor(i64, {2}));
  }
  h.refuses("head_dim beyond the limit", {"head_dim is 5000", "4096"},
            [&] { return change(tensors(1, 2, 2, 1, 9, 5000)); });
  h.refuses("rows beyond the limit", {"rows is 2000000000"},
            [&] { return change(tensors(1, 2, 2, 2000000000, 9, 8)); });
  h.refuses("unknown at run time", {"batch is -1"}, [&] { return change(tensors(-1, 2, 2, 1, 9, 8)); });
  const auto given = tensors(1, 2, 2, 1, 9, 8);
  h.refuses("run time null", {"null"},
            [&] { return runtime.onShapeChange(nullptr, 3, given.data(), 2) == 0; });
  h.refuses("configured null", {"null"}, [&] { return build.configurePlugin(nullptr, 3, nullptr, 2) == 0; });

  const auto workspace = [&](const std::vector<PluginTensorDesc>& all) {
    const auto sized = ranges(all);
    return build.getWorkspaceSize(sized.data(), 3, sized.data() + 3, 2);
  };
  const size_t small = workspace(tensors(1, 32, 8, 64, 4096, 128));
  const size_t large = workspace(tensors(2, 32, 8, 64, 131072, 128));
  h.check(workspace(tensors(1, 32, 8, 0, 4096, 128)) == 0, "VlkvScore needs no workspace where W = 0");
  h.check(small > 0 && large > small && large < (size_t{1} << 28),
          "VlkvScore's workspace: " + std::to_string(small) + ", then " + std::to_string(large) + " bytes");
  h.refuses("workspace null", {"null"}, [&] { return build.getWorkspaceSize(nullptr, 3, nullptr, 2) != 0; });
}

void check_enqueue(Harness& h, nvinfer1::IPluginV3OneRuntime& runtime) {
  const auto all = tensors(1, 2, 2, 1, 9, 8);
  alignas(256) static char memory[4096];
  const void* in[] = {memory, memory, memory};
  void* out[] = {memory, memory};
  const auto run = [&](const PluginTensorDesc* descs, const void* const* from, void* const* to) {
    // TensorRT promises no alignment of the workspace
    return runtime.enqueue(descs, all.data() + 3, from, to, memory + 8, nullptr) == 0;
  };
  h.refuses("enqueue null", {"null"}, [&] { return run(nullptr, in, out); });
  h.refuses("enqueue null", {"null"}, [&] { return run(all.data(), nullptr, out); });
  h.refuses("enqueue null", {"null"}, [&] { return run(all.data(), in, nullptr); });
  const void* without_key[] = {memory, nullptr, memory};
  h.refuses("enqueue, key null", {"key is null"}, [&] { return run(all.data(), without_key, out); });
  if (h.refusal != nullptr) {
    h.refuses("enqueue", {h.refusal}, [&] { return run(all.data(), in, out); });
  }
}

}  // namespace

void check_score(Harness& h, nvinfer1::IPluginCreatorV3One& creator) {
  const float scale = 0.125F, threshold = 0.01F, other = 0.25F;
  const PluginFieldType real = PluginFieldType::kFLOAT32;
  const std::vector<PluginField> fields{{"scale", &scale, real, 1}, {"threshold", &threshold, real, 1}};
  check_common(h, creator, "VlkvScore", fields, {{"scale", &other, real, 1}, {"threshold", &other, real, 1}});
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const float value : {0.0F, -1.0F, infinity, -infinity, nan}) {
    h.refuses("scale", {"scale is", "above 0"}, [&] {
      return create(creator, {{"scale", &value, real, 1}, {"threshold", &threshold, real, 1}});
    });
  }
  for (const float value : {-0.5F, 1.5F, infinity, nan}) {
    h.refuses("threshold", {"threshold is", "[0, 1]"},
              [&] { return create(creator, {{"scale", &scale, real, 1}, {"threshold", &value, real, 1}}); });
  }
  const Made made(create(creator, fields));
  h.check(made.build().getNbOutputs() == 2, "VlkvScore has 2 outputs");
  check_types(h, made.build());
  check_shapes(h, made.build());
  check_formats(h, made.build());
  check_sizes(h, made);
  check_enqueue(h, made.runtime());
}
