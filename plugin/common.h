// Code that the plugins share: errors through TensorRT's logger, attributes, checks of tensors.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "vlkv/types.h"

namespace vlkv::tensorrt {

// Logs to the calling engine's logger, or to standard error if TensorRT has not set one.
void log_error(const char* text) noexcept;

template <class... Parts>
void require(bool holds, const char* op, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  text << '[' << op << "] ";
  (text << ... << parts);
  throw InvalidArgument(text.str());
}

// Returns the result of `body`. Logs an exception and returns `failure`, so that nothing escapes a noexcept.
template <class Result, class Body>
Result guarded(Result failure, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    log_error(error.what());
  } catch (...) {
    log_error("[vlkv] an error of unknown type");
  }
  return failure;
}

inline constexpr int32_t kDone = 0, kRefused = 1;

// Like `guarded`, for methods that return a status.
template <class Body>
int32_t status(Body body) noexcept {
  return guarded(kRefused, [&] {
    body();
    return kDone;
  });
}

// The attributes of a plugin. Every name must occur once, with one value of the right type.
class Attributes {
 public:
  Attributes(const char* op, const nvinfer1::PluginFieldCollection* fields);

  float number(const char* name) const;
  int32_t flag(const char* name) const;  // 0 or 1, given as int32 or int64

 private:
  const nvinfer1::PluginField& find(const char* name) const;

  const char* op_;
  const nvinfer1::PluginFieldCollection* fields_;
};

// float32, float16 or bfloat16; false for other types.
bool is_cache_type(nvinfer1::DataType type) noexcept;
DType cache_type(nvinfer1::DataType type);
const char* type_name(nvinfer1::DataType type) noexcept;

void require_rank(const char* op, const char* name, int32_t rank, int32_t wanted);

// Refuses an attribute `scale` that is not a finite number above 0.
void require_scale(const char* op, float scale);

// Refuses arrays of another length than the layer's inputs and outputs, and null arrays.
void require_counts(const char* op, const void* in, int32_t input_count, int32_t inputs, const void* out,
                    int32_t output_count, int32_t outputs);

// Refuses a number of a tensor that is outside [0, count).
void require_position(const char* op, int32_t position, int32_t count);

// Refuses null arrays in enqueue.
void require_arrays(const char* op, const void* in, const void* out, const void* inputs, const void* outputs);

// Refuses a tensor's type unless `holds`; `wanted` names the types that it may have.
void require_type(const char* op, const char* name, bool holds, nvinfer1::DataType type, const char* wanted);

// Refuses query heads that are not a multiple of the KV heads of `tensor`. -1 is a size not yet known.
void require_groups(const char* op, int64_t query_heads, int64_t kv_heads, const char* tensor);

// Sets `size` to `other`; refuses two known sizes that differ. -1 is an unknown size.
void agree(const char* op, const char* name, const char* letter, int64_t& size, int64_t other);

// A pointer for validate() before the real one is known.
void* stand_in() noexcept;

// One object has all three capabilities. `fields` are the serialized attributes, which point into the plugin
// itself: copies are made from values, never from another plugin's fields.
// Build: the version of TensorRT's building interface.
template <class Build>
class PluginOf : public nvinfer1::IPluginV3,
                 public nvinfer1::IPluginV3OneCore,
                 public Build,
                 public nvinfer1::IPluginV3OneRuntime {
 public:
  PluginOf(const char* name, std::string description) : name_(name), description_(std::move(description)) {}
  PluginOf(const PluginOf&) = delete;
  PluginOf& operator=(const PluginOf&) = delete;

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<Build*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    log_error("[vlkv] unknown kind of capability; known are 0, 1 and 2");
    return nullptr;
  }
  const char* getPluginName() const noexcept override { return name_; }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }
  const char* getTimingCacheID() noexcept override { return description_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 protected:
  void serialize(std::vector<nvinfer1::PluginField> fields) {
    fields_ = std::move(fields);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  }

 private:
  const char* name_;
  std::string description_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};
using Plugin = PluginOf<nvinfer1::IPluginV3OneBuild>;

// P has kName, kFields (names and types of its attributes) and create(Attributes).
template <class P>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return P::create(Attributes(P::kName, fields)); });
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return P::kName; }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return ""; }

 private:
  nvinfer1::PluginFieldCollection collection_{static_cast<int32_t>(std::size(P::kFields)), P::kFields};
};

nvinfer1::IPluginCreatorInterface& attend_creator() noexcept;
nvinfer1::IPluginCreatorInterface& score_creator() noexcept;
nvinfer1::IPluginCreatorInterface& evict_creator() noexcept;

}  // namespace vlkv::tensorrt
