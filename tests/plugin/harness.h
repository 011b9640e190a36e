// Checks, one line each; a logger that remembers; tensors and attributes in few words.
#pragma once

#include <NvInferRuntime.h>

#include <cstdio>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "expressions.h"

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

class Recorder final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  ~Recorder() override = default;
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kERROR) errors_ += std::string(text) + "\n";
  }
  nvinfer1::ILogger* findLogger() override { return this; }
  std::string take() { return std::exchange(errors_, {}); }

 private:
  std::string errors_;
};

struct Harness {
  Recorder logger;
  int passed = 0, failed = 0;
  // What enqueue says to made-up pointers; null where there is a device, which is given none.
  const char* refusal = "VLKV_CUDA";

  void check(bool holds, const std::string& name) {
    std::printf("%s %s\n", holds ? "ok  " : "FAIL", name.c_str());
    ++(holds ? passed : failed);
  }
  // `call` succeeds and logs nothing.
  void accepts(const std::string& name, const std::function<bool()>& call) {
    logger.take();
    const bool done = call();
    const std::string errors = logger.take();
    check(done && errors.empty(), name + (errors.empty() ? "" : ": " + errors));
  }
  // `call` fails and logs one error that holds every text.
  void refuses(const std::string& name, std::initializer_list<const char*> texts,
               const std::function<bool()>& call) {
    logger.take();
    bool refused = !call();
    const std::string errors = logger.take();
    for (const char* text : texts) refused = refused && errors.find(text) != std::string::npos;
    check(refused, name + ": " + (errors.empty() ? "nothing logged" : errors.substr(0, errors.size() - 1)));
  }
};

// A plugin and its capabilities.
struct Made {
  std::unique_ptr<nvinfer1::IPluginV3> plugin;

  explicit Made(nvinfer1::IPluginV3* made) : plugin(made) {}
  nvinfer1::IPluginV3OneCore& core() const {
    return static_cast<nvinfer1::IPluginV3OneCore&>(*get(nvinfer1::PluginCapabilityType::kCORE));
  }
  nvinfer1::IPluginV3OneBuild& build() const {
    return static_cast<nvinfer1::IPluginV3OneBuild&>(*get(nvinfer1::PluginCapabilityType::kBUILD));
  }
  nvinfer1::IPluginV3OneRuntime& runtime() const {
    return static_cast<nvinfer1::IPluginV3OneRuntime&>(*get(nvinfer1::PluginCapabilityType::kRUNTIME));
  }
  nvinfer1::IPluginCapability* get(nvinfer1::PluginCapabilityType type) const {
    return plugin->getCapabilityInterface(type);
  }
};

inline nvinfer1::IPluginV3* create(nvinfer1::IPluginCreatorV3One& creator, std::vector<PluginField> fields,
                                   nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
  const nvinfer1::PluginFieldCollection all{static_cast<int32_t>(fields.size()), fields.data()};
  return creator.createPlugin("layer", &all, phase);
}

inline PluginTensorDesc tensor(DataType type, std::initializer_list<int64_t> sizes) {
  PluginTensorDesc desc{};
  for (const int64_t size : sizes) desc.dims.d[desc.dims.nbDims++] = size;
  desc.type = type;
  desc.format = TensorFormat::kLINEAR;
  return desc;
}

// As a builder gives it: dims as at run time where they are known, ranges besides.
inline std::vector<DynamicPluginTensorDesc> ranges(const std::vector<PluginTensorDesc>& tensors) {
  std::vector<DynamicPluginTensorDesc> all;
  for (const PluginTensorDesc& one : tensors) all.push_back({one, one.dims, one.dims, one.dims});
  return all;
}

// Asks as TensorRT does: tensor by tensor, every type and format, later tensors not filled in. Returns the
// types of each combination that is supported, and whether any was in another format than linear.
struct Combinations {
  std::vector<std::vector<DataType>> found;
  int asked = 0;
  bool only_linear = true;
};
void combinations(nvinfer1::IPluginV3OneBuild& build, int32_t inputs, int32_t outputs,
                  std::vector<DynamicPluginTensorDesc>& tensors, Combinations& all);

void check_common(Harness& h, nvinfer1::IPluginCreatorV3One& creator, const char* name,
                  const std::vector<PluginField>& fields, const std::vector<PluginField>& others);
void check_attend(Harness& h, nvinfer1::IPluginCreatorV3One& creator);
void check_score(Harness& h, nvinfer1::IPluginCreatorV3One& creator);
void check_evict(Harness& h, nvinfer1::IPluginCreatorV3One& creator);

// Where there is a device: enqueue, and what it wrote.
void check_attend_on_device(Harness& h, nvinfer1::IPluginCreatorV3One& creator);
void check_score_on_device(Harness& h, nvinfer1::IPluginCreatorV3One& creator);
void check_evict_on_device(Harness& h, nvinfer1::IPluginCreatorV3One& creator);
