// vlkv_plugin_driver PLUGIN LIBNVINFER [--device | --no-device]: loads the plugin into TensorRT's registry
// and calls every method of what its creators make. The plugin has no kernels; or it has, and there is a
// device, on which enqueue is then checked, or there is none.
#include <dlfcn.h>

#include <cstring>

#include "harness.h"

namespace {

using Phase = nvinfer1::TensorRTPhase;

std::string fields_of(nvinfer1::IPluginV3OneRuntime& runtime) {
  const nvinfer1::PluginFieldCollection* const all = runtime.getFieldsToSerialize();
  std::string text;
  for (int32_t i = 0; all != nullptr && i < all->nbFields; ++i) {
    const PluginField& field = all->fields[i];
    const bool real = field.type == PluginFieldType::kFLOAT32;
    text += std::string(field.name) + "=" +
            (real ? std::to_string(*static_cast<const float*>(field.data))
                  : std::to_string(*static_cast<const int32_t*>(field.data))) +
            ";";
  }
  return text;
}

}  // namespace

void combinations(nvinfer1::IPluginV3OneBuild& build, int32_t inputs, int32_t outputs,
                  std::vector<DynamicPluginTensorDesc>& tensors, Combinations& all) {
  const auto position = static_cast<int32_t>(tensors.size());
  if (position == inputs + outputs) {
    auto& types = all.found.emplace_back();
    for (const DynamicPluginTensorDesc& one : tensors) types.push_back(one.desc.type);
    return;
  }
  for (int32_t type = 0; type < nvinfer1::EnumMax<DataType>(); ++type) {
    for (int32_t format = 0; format < nvinfer1::EnumMax<TensorFormat>(); ++format) {
      tensors.push_back({});
      tensors.back().desc.type = static_cast<DataType>(type);
      tensors.back().desc.format = static_cast<TensorFormat>(format);
      std::vector<DynamicPluginTensorDesc> given = tensors;
      given.resize(static_cast<size_t>(inputs + outputs));
      ++all.asked;
      if (build.supportsFormatCombination(position, given.data(), inputs, outputs)) {
        all.only_linear = all.only_linear && format == 0;
        combinations(build, inputs, outputs, tensors, all);
      }
      tensors.pop_back();
    }
  }
}

// What holds for every plugin. `others` are valid attributes of other values.
void check_common(Harness& h, nvinfer1::IPluginCreatorV3One& creator, const char* name,
                  const std::vector<PluginField>& fields, const std::vector<PluginField>& others) {
  const std::string at = std::string(name) + " ";
  h.check(std::strcmp(creator.getPluginName(), name) == 0, at + "creator's name");
  h.check(std::strcmp(creator.getPluginVersion(), "1") == 0, at + "creator's version is 1");
  h.check(std::strcmp(creator.getPluginNamespace(), "") == 0, at + "creator's namespace is empty");
  const nvinfer1::PluginFieldCollection* const names = creator.getFieldNames();
  bool same = names != nullptr && names->nbFields == static_cast<int32_t>(fields.size());
  for (size_t i = 0; same && i < fields.size(); ++i) {
    same = std::strcmp(names->fields[i].name, fields[i].name) == 0 &&
           names->fields[i].type == fields[i].type && names->fields[i].length == 1;
  }
  h.check(same, at + "creator's attributes: names, types, lengths");
  for (const Phase phase : {Phase::kBUILD, Phase::kRUNTIME}) {
    h.accepts(at + "made for phase " + std::to_string(static_cast<int>(phase)),
              [&] { return Made(create(creator, fields, phase)).plugin != nullptr; });
  }

  h.refuses("no collection", {name, "no attributes"}, [&] { return creator.createPlugin("", nullptr, {}); });
  const nvinfer1::PluginFieldCollection null{2, nullptr}, negative{-1, nullptr};
  h.refuses("null collection", {name, "2 attributes"}, [&] { return creator.createPlugin("", &null, {}); });
  h.refuses("negative count", {name, "-1"}, [&] { return creator.createPlugin("", &negative, {}); });
  for (size_t i = 0; i < fields.size(); ++i) {
    const auto with = [&](auto change) {
      std::vector<PluginField> changed = fields;
      change(changed);
      return Made(create(creator, changed)).plugin != nullptr;
    };
    const char* const field = fields[i].name;
    h.refuses("attribute missing", {name, field, "missing"},
              [&] { return with([&](auto& all) { all.erase(all.begin() + static_cast<long>(i)); }); });
    h.refuses("attribute twice", {name, field, "twice"},
              [&] { return with([&](auto& all) { all.push_back(all[i]); }); });
    h.refuses("attribute without a value", {name, field, "null"},
              [&] { return with([&](auto& all) { all[i].data = nullptr; }); });
    h.refuses("attribute of two values", {name, field, "2 values"},
              [&] { return with([&](auto& all) { all[i].length = 2; }); });
    h.refuses("attribute without a name", {name, field, "missing"},
              [&] { return with([&](auto& all) { all[i].name = nullptr; }); });
    for (const PluginFieldType type :
         {PluginFieldType::kFLOAT64, PluginFieldType::kCHAR, PluginFieldType::kINT8,
          PluginFieldType::kUNKNOWN, PluginFieldType::kDIMS}) {
      h.refuses("attribute of another type", {name, field, "field type"},
                [&] { return with([&](auto& all) { all[i].type = type; }); });
    }
  }
  h.accepts(at + "takes attributes in any order, and passes over unknown ones", [&] {
    std::vector<PluginField> all(fields.rbegin(), fields.rend());
    all.emplace_back("unknown", nullptr, PluginFieldType::kCHAR, 0);
    return Made(create(creator, all)).plugin != nullptr;
  });

  auto first = std::make_unique<Made>(create(creator, fields));
  using Kind = nvinfer1::PluginCapabilityType;
  for (const Kind kind : {Kind::kCORE, Kind::kBUILD, Kind::kRUNTIME}) {
    h.check(first->get(kind) != nullptr, at + "has capability " + std::to_string(static_cast<int>(kind)));
  }
  h.refuses("unknown capability", {"unknown kind"}, [&] { return first->get(static_cast<Kind>(9)); });
  h.check(std::strcmp(first->core().getPluginName(), name) == 0 &&
              std::strcmp(first->core().getPluginVersion(), "1") == 0 &&
              std::strcmp(first->core().getPluginNamespace(), "") == 0,
          at + "plugin's name, version, namespace");
  h.check(first->build().getNbTactics() == 0 && first->runtime().setTactic(0) == 0, at + "has one tactic");

  const std::string wanted = fields_of(first->runtime());
  const nvinfer1::PluginFieldCollection* const saved = first->runtime().getFieldsToSerialize();
  Made again(create(creator, {saved->fields, saved->fields + saved->nbFields}, Phase::kRUNTIME));
  h.check(fields_of(again.runtime()) == wanted, at + "made again from what it serialised: " + wanted);
  Made other(create(creator, others));
  h.check(std::strcmp(first->build().getTimingCacheID(), again.build().getTimingCacheID()) == 0 &&
              std::strcmp(first->build().getTimingCacheID(), other.build().getTimingCacheID()) != 0 &&
              std::strcmp(first->build().getMetadataString(), other.build().getMetadataString()) != 0,
          at + "timing cache id and metadata tell attributes apart");

  auto middle = std::make_unique<Made>(first->plugin->clone());
  Made attached(middle->runtime().attachToContext(nullptr));
  h.check(middle->runtime().getFieldsToSerialize() != saved &&
              middle->runtime().getFieldsToSerialize()->fields[0].data != saved->fields[0].data,
          at + "a clone's attributes are its own");
  first.reset();
  // Plugins of other attributes, where the destroyed one was.
  std::vector<Made> filling;
  for (int i = 0; i < 16; ++i) filling.emplace_back(create(creator, others));
  h.check(fields_of(middle->runtime()) == wanted, at + "a clone outlives what it was cloned from");
  middle.reset();
  for (int i = 0; i < 16; ++i) filling.emplace_back(create(creator, others));
  h.check(fields_of(attached.runtime()) == wanted &&
              attached.build().getNbOutputs() == again.build().getNbOutputs(),
          at + "attached to a context, it outlives the clone");
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: vlkv_plugin_driver PLUGIN LIBNVINFER [--device | --no-device]\n");
    return 2;
  }
  void* const runtime = dlopen(argv[2], RTLD_NOW | RTLD_GLOBAL);
  if (runtime == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const auto registry_of =
      reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(dlsym(runtime, "getPluginRegistry"));
  nvinfer1::IPluginRegistry* const registry = registry_of == nullptr ? nullptr : registry_of();
  if (registry == nullptr) {
    std::fprintf(stderr, "%s has no plugin registry\n", argv[2]);
    return 2;
  }

  Harness h;
  const std::string kernels = argc > 3 ? argv[3] : "";
  if (kernels == "--no-device") h.refusal = "no launch";
  if (kernels == "--device") h.refusal = nullptr;
  const auto library = registry->loadLibrary(argv[1]);
  h.check(library != nullptr, "the registry loads the library");
  void* const plugin = dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD);
  const auto set_finder =
      plugin == nullptr
          ? nullptr
          : reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(plugin, "setLoggerFinder"));
  h.check(set_finder != nullptr, "setLoggerFinder is exported");
  if (set_finder == nullptr) return 1;
  set_finder(&h.logger);

  for (const auto& [name, check] :
       {std::pair{"VlkvScore", &check_score}, {"VlkvEvict", &check_evict}, {"VlkvAttend", &check_attend}}) {
    auto* const creator = registry->getCreator(name, "1", "");
    const bool right =
        creator != nullptr && std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0;
    h.check(right, std::string("the registry has ") + name + ", an IPluginCreatorV3One");
    if (right) check(h, static_cast<nvinfer1::IPluginCreatorV3One&>(*creator));
  }
#ifdef VLKV_HAVE_CUDA
  if (kernels == "--device" && h.failed == 0) {
    const auto creator = [&](const char* name) -> nvinfer1::IPluginCreatorV3One& {
      return static_cast<nvinfer1::IPluginCreatorV3One&>(*registry->getCreator(name, "1", ""));
    };
    check_score_on_device(h, creator("VlkvScore"));
    check_evict_on_device(h, creator("VlkvEvict"));
    check_attend_on_device(h, creator("VlkvAttend"));
  }
#endif
  h.check(registry->getCreator("VlkvScore", "2", "") == nullptr, "the registry has no version 2");

  set_finder(nullptr);
  registry->deregisterLibrary(library);
  h.check(registry->getCreator("VlkvScore", "1", "") == nullptr, "unloaded, its creators are gone");
  std::printf("%d passed, %d failed\n", h.passed, h.failed);
  return h.failed == 0 ? 0 : 1;
}
