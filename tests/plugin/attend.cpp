// Every method of VlkvAttend.
#include <cmath>
#include <cstring>
#include <limits>

#include "harness.h"

namespace {

constexpr int32_t kInputs = 7, kOutputs = 3;
const DataType kCaches[] = {DataType::kHALF, DataType::kBF16};
const DataType kLong = DataType::kINT64;

// query, key, value, key_cache, value_cache, length, count; result, new_key_cache, new_value_cache.
std::vector<PluginTensorDesc> tensors(int64_t b, int64_t hq, int64_t hkv, int64_t s, int64_t c, int64_t d,
                                      DataType type = DataType::kHALF) {
  const auto query = tensor(type, {b, hq, s, d}), key = tensor(type, {b, hkv, s, d});
  const auto cache = tensor(type, {b, hkv, c, d}), counts = tensor(kLong, {b});
  return {query, key, key, cache, cache, counts, counts, query, cache, cache};
}

void check_aliasing(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  const nvinfer1::InterfaceInfo info = build.getInterfaceInfo();
  const bool second = std::strcmp(info.kind, "PLUGIN_V3ONE_BUILD") == 0 && info.major == 2;
  h.check(second, "VlkvAttend is built by version 2 of the interface");
  if (!second) return;
  auto& aliasing = static_cast<nvinfer1::IPluginV3OneBuildV2&>(build);
  h.check(aliasing.getAliasedInput(0) == -1, "VlkvAttend's result is memory of its own");
  h.check(aliasing.getAliasedInput(1) == 3 && aliasing.getAliasedInput(2) == 4,
          "VlkvAttend's caches share their inputs' memory");
  for (const int32_t output : {-1, 3}) {
    h.check(aliasing.getAliasedInput(output) == -1, "VlkvAttend aliases no output " + std::to_string(output));
  }
}

void check_types(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  using Types = std::vector<DataType>;
  DataType out[kOutputs]{};
  const auto types = [&](const Types& in) {
    return build.getOutputDataTypes(out, kOutputs, in.data(), kInputs) == 0;
  };
  for (const DataType c : kCaches) {
    h.accepts("VlkvAttend output types", [&] {
      return types({c, c, c, c, c, kLong, kLong}) && out[0] == c && out[1] == c && out[2] == c;
    });
  }
  const DataType f16 = DataType::kHALF, b16 = DataType::kBF16, f32 = DataType::kFLOAT;
  h.refuses("float32 query", {"query is float32", "float16 or bfloat16"},
            [&] { return types({f32, f32, f32, f32, f32, kLong, kLong}); });
  h.refuses("types differ", {"value_cache is bfloat16", "query's type"},
            [&] { return types({f16, f16, f16, f16, b16, kLong, kLong}); });
  h.refuses("int32 count", {"count is int32", "int64"},
            [&] { return types({f16, f16, f16, f16, f16, kLong, DataType::kINT32}); });
  const DataType in[kInputs] = {f16, f16, f16, f16, f16, kLong, kLong};
  h.refuses("types null", {"null"}, [&] { return build.getOutputDataTypes(nullptr, 3, in, 7) == 0; });
  h.refuses("types of 6 inputs", {"6 inputs", "not 7"},
            [&] { return build.getOutputDataTypes(out, 3, in, 6) == 0; });
  h.refuses("types of 1 output", {"1 outputs", "not 3"},
            [&] { return build.getOutputDataTypes(out, 1, in, 7) == 0; });
}

void check_shapes(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  Expressions e;
  DimsExprs out[kOutputs]{};
  const auto shapes = [&](std::vector<DimsExprs> in, int32_t count = kInputs) {
    return build.getOutputShapes(in.data(), count, nullptr, 0, out, kOutputs, e) == 0;
  };
  const DimsExprs query = e.dims({-1, 32, -1, 128}), key = e.dims({-1, 8, -1, 128});
  const DimsExprs cache = e.dims({-1, 8, -1, 128}), counts = e.dims({-1});
  h.accepts("VlkvAttend output shapes", [&] {
    return shapes({query, key, key, cache, cache, counts, counts}) && out[0].nbDims == 4 &&
           out[0].d[2] == query.d[2] && out[1].nbDims == 4 && out[1].d[2] == cache.d[2] &&
           out[2].d[1] == cache.d[1];
  });
  h.refuses("cache of rank 3", {"value_cache has rank 3", "not 4"},
            [&] { return shapes({query, key, key, cache, e.dims({1, 2, 8}), counts, counts}); });
  h.refuses("length of rank 2", {"length has rank 2", "not 1"},
            [&] { return shapes({query, key, key, cache, cache, e.dims({1, 1}), counts}); });
  h.refuses("shapes of 6 inputs", {"6 inputs"},
            [&] { return shapes({query, key, key, cache, cache, counts}, 6); });
  h.refuses("shapes null", {"null"},
            [&] { return build.getOutputShapes(nullptr, 7, nullptr, 0, out, 3, e) == 0; });
}

void check_formats(Harness& h, nvinfer1::IPluginV3OneBuild& build) {
  Combinations all;
  std::vector<DynamicPluginTensorDesc> none;
  combinations(build, kInputs, kOutputs, none, all);
  std::vector<std::vector<DataType>> wanted;
  for (const DataType c : kCaches) wanted.push_back({c, c, c, c, c, kLong, kLong, c, c, c});
  h.check(all.only_linear && all.found == wanted,
          "VlkvAttend supports 2 combinations of " + std::to_string(all.asked) + " asked");
  const auto some = ranges(tensors(1, 4, 2, 3, 9, 8));
  for (const int32_t position : {-1, 10}) {
    h.refuses("position outside", {"position is", "[0, 10)"},
              [&] { return build.supportsFormatCombination(position, some.data(), 7, 3); });
  }
  h.refuses("formats null", {"null"}, [&] { return build.supportsFormatCombination(0, nullptr, 7, 3); });
}

void check_sizes(Harness& h, const Made& made) {
  auto& build = made.build();
  auto& runtime = made.runtime();
  using Call = std::function<bool(const std::vector<PluginTensorDesc>&)>;
  const Call configure = [&](const auto& all) {
    const auto given = ranges(all);
    return build.configurePlugin(given.data(), kInputs, given.data() + kInputs, kOutputs) == 0;
  };
  const Call change = [&](const auto& all) {
    return runtime.onShapeChange(all.data(), kInputs, all.data() + kInputs, kOutputs) == 0;
  };
  h.accepts("VlkvAttend configured, sizes unknown",
            [&] { return configure(tensors(-1, 32, 8, -1, -1, 128)); });
  h.accepts("VlkvAttend configured, all unknown", [&] { return configure(tensors(-1, -1, -1, -1, -1, -1)); });
  for (const DataType type : kCaches) {
    for (const int64_t dim : {64, 80, 96, 128, 256}) {
      for (const int64_t rows : {0, 1, 16, 777}) {
        h.accepts("VlkvAttend takes head size " + std::to_string(dim) + ", S = " + std::to_string(rows),
                  [&] { return change(tensors(3, 6, 2, rows, 1077, dim, type)); });
      }
    }
  }
  h.accepts("VlkvAttend takes B = 0", [&] { return change(tensors(0, 32, 8, 1, 16, 128)); });
  h.accepts("VlkvAttend takes C = 0", [&] { return change(tensors(1, 32, 8, 1, 0, 128)); });
  h.accepts("VlkvAttend takes C = 131072", [&] { return change(tensors(1, 32, 8, 1024, 131072, 128)); });

  for (const bool configured : {true, false}) {
    const std::string way = configured ? "configured" : "at run time";
    const Call& call = configured ? configure : change;
    const auto refuses = [&](std::initializer_list<const char*> texts, size_t i, PluginTensorDesc with) {
      auto all = tensors(2, 4, 2, 3, 9, 8);
      all[i] = with;
      h.refuses(way, texts, [&] { return call(all); });
    };
    const DataType f16 = DataType::kHALF;
    refuses({"query has rank 3"}, 0, tensor(f16, {2, 4, 3}));
    refuses({"key has B = 5", "2"}, 1, tensor(f16, {5, 2, 3, 8}));
    refuses({"value has S = 4", "3"}, 2, tensor(f16, {2, 2, 4, 8}));
    refuses({"value_cache has C = 10", "9"}, 4, tensor(f16, {2, 2, 10, 8}));
    refuses({"key has Hkv = 1", "2"}, 1, tensor(f16, {2, 1, 3, 8}));
    refuses({"value_cache has D = 16", "8"}, 4, tensor(f16, {2, 2, 9, 16}));
    refuses({"count has B = 3", "2"}, 6, tensor(kLong, {3}));
    refuses({"result has Hq = 2", "4"}, 7, tensor(f16, {2, 2, 3, 8}));
    refuses({"new_key_cache has C = 8", "9"}, 8, tensor(f16, {2, 2, 8, 8}));
    refuses({"new_value_cache is float32"}, 9, tensor(DataType::kFLOAT, {2, 2, 9, 8}));
    h.refuses(way, {"Hq = 3", "Hkv = 2"}, [&] { return call(tensors(2, 3, 2, 3, 9, 8)); });
  }
  h.refuses("head size between", {"head_dim is 60", "multiple of 8"},
            [&] { return change(tensors(1, 2, 2, 1, 9, 60)); });
  h.refuses("head size beyond the limit", {"head_dim is 264", "[8, 256]"},
            [&] { return change(tensors(1, 2, 2, 1, 9, 264)); });
  h.refuses("unknown at run time", {"batch is -1"}, [&] { return change(tensors(-1, 2, 2, 1, 9, 8)); });
  h.refuses("configured null", {"null"}, [&] { return build.configurePlugin(nullptr, 7, nullptr, 3) == 0; });

  const auto workspace = [&](const std::vector<PluginTensorDesc>& all) {
    const auto sized = ranges(all);
    return build.getWorkspaceSize(sized.data(), kInputs, sized.data() + kInputs, kOutputs);
  };
  h.check(workspace(tensors(1, 32, 8, 1, 256, 128)) == 0, "VlkvAttend needs no workspace for a short cache");
  const size_t one = workspace(tensors(1, 32, 32, 1, 4096, 128));
  const size_t many = workspace(tensors(64, 32, 8, 2048, 131072, 128));
  h.check(one > 0 && one < (size_t{1} << 20) && many >= one && many < (size_t{1} << 25),
          "VlkvAttend's workspace: " + std::to_string(one) + ", at most " + std::to_string(many) + " bytes");
  h.refuses("workspace null", {"null"}, [&] { return build.getWorkspaceSize(nullptr, 7, nullptr, 3) != 0; });
}

void check_enqueue(Harness& h, nvinfer1::IPluginV3OneRuntime& runtime) {
  const auto all = tensors(1, 2, 2, 1, 9, 8);
  alignas(256) static char memory[4096], elsewhere[4096];
  const void* in[] = {memory, memory, memory, memory, memory, memory, memory};
  void* out[] = {elsewhere, memory, memory};
  const auto run = [&](const PluginTensorDesc* descs, const void* const* from, void* const* to) {
    return runtime.enqueue(descs, all.data() + kInputs, from, to, memory + 8, nullptr) == 0;
  };
  h.refuses("enqueue null", {"null"}, [&] { return run(nullptr, in, out); });
  h.refuses("enqueue null", {"null"}, [&] { return run(all.data(), nullptr, out); });
  h.refuses("enqueue null", {"null"}, [&] { return run(all.data(), in, nullptr); });
  void* not_shared[] = {elsewhere, memory, elsewhere};
  h.refuses("caches that are not shared", {"new_value_cache does not share", "kALIASED_PLUGIN_IO_10_03"},
            [&] { return run(all.data(), in, not_shared); });
  const void* odd[] = {memory + 2, memory, memory, memory, memory, memory, memory};
  h.refuses("enqueue, not aligned", {"query's address", "16 bytes"},
            [&] { return run(all.data(), odd, out); });
  if (h.refusal != nullptr) {
    h.refuses("enqueue", {h.refusal}, [&] { return run(all.data(), in, out); });
  }
}

}  // namespace

void check_attend(Harness& h, nvinfer1::IPluginCreatorV3One& creator) {
  const float scale = 0.125F, other = 0.25F;
  const PluginFieldType real = PluginFieldType::kFLOAT32;
  const std::vector<PluginField> fields{{"scale", &scale, real, 1}};
  check_common(h, creator, "VlkvAttend", fields, {{"scale", &other, real, 1}});
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const float value : {0.0F, -1.0F, infinity, nan}) {
    h.refuses("scale", {"scale is", "above 0"},
              [&] { return create(creator, {{"scale", &value, real, 1}}); });
  }
  const Made made(create(creator, fields));
  h.check(made.build().getNbOutputs() == kOutputs, "VlkvAttend has 3 outputs");
  check_aliasing(h, made.build());
  check_types(h, made.build());
  check_shapes(h, made.build());
  check_formats(h, made.build());
  check_sizes(h, made);
  check_enqueue(h, made.runtime());
}
