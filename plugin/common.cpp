#include "common.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace vlkv::tensorrt {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

}  // namespace

void log_error(const char* text) noexcept {
  try {
    nvinfer1::ILoggerFinder* const known = finder.load();
    nvinfer1::ILogger* const logger = known == nullptr ? nullptr : known->findLogger();
    if (logger != nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, text);
      return;
    }
  } catch (...) {
    std::fputs("[vlkv] TensorRT's logger failed\n", stderr);
  }
  std::fprintf(stderr, "%s\n", text);
}

Attributes::Attributes(const char* op, const nvinfer1::PluginFieldCollection* fields)
    : op_(op), fields_(fields) {
  require(fields != nullptr, op, "no attributes were given");
  require(fields->nbFields >= 0, op, "has ", fields->nbFields, " attributes");
  require(fields->nbFields == 0 || fields->fields != nullptr, op, "its ", fields->nbFields,
          " attributes are null");
}

const PluginField& Attributes::find(const char* name) const {
  const PluginField* found = nullptr;
  for (int32_t i = 0; i < fields_->nbFields; ++i) {
    const PluginField& field = fields_->fields[i];
    if (field.name == nullptr || std::strcmp(field.name, name) != 0) continue;
    require(found == nullptr, op_, "attribute ", name, " is there twice");
    found = &field;
  }
  require(found != nullptr, op_, "attribute ", name, " is missing");
  require(found->data != nullptr, op_, "attribute ", name, " is null");
  require(found->length == 1, op_, "attribute ", name, " has ", found->length, " values, not 1");
  return *found;
}

float Attributes::number(const char* name) const {
  const PluginField& field = find(name);
  require(field.type == PluginFieldType::kFLOAT32, op_, "attribute ", name, " has field type ",
          static_cast<int>(field.type), ", not float32 (", static_cast<int>(PluginFieldType::kFLOAT32), ")");
  float value;
  std::memcpy(&value, field.data, sizeof value);
  return value;
}

int32_t Attributes::flag(const char* name) const {
  const PluginField& field = find(name);
  const bool is_long = field.type == PluginFieldType::kINT64;
  require(is_long || field.type == PluginFieldType::kINT32, op_, "attribute ", name, " has field type ",
          static_cast<int>(field.type), ", not int32 (", static_cast<int>(PluginFieldType::kINT32),
          ") or int64 (", static_cast<int>(PluginFieldType::kINT64), ")");
  int64_t value;
  int32_t narrow;
  std::memcpy(is_long ? static_cast<void*>(&value) : &narrow, field.data, is_long ? 8 : 4);
  if (!is_long) value = narrow;
  require(value == 0 || value == 1, op_, "attribute ", name, " is ", value, ", not 0 or 1");
  return static_cast<int32_t>(value);
}

bool is_cache_type(DataType type) noexcept {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

DType cache_type(DataType type) {
  if (type == DataType::kHALF) return DType::kFloat16;
  return type == DataType::kBF16 ? DType::kBFloat16 : DType::kFloat32;
}

const char* type_name(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    default:
      return "another type";
  }
}

void require_rank(const char* op, const char* name, int32_t rank, int32_t wanted) {
  require(rank == wanted, op, name, " has rank ", rank, ", not ", wanted);
}

void require_scale(const char* op, float scale) {
  require(std::isfinite(scale) && scale > 0.0F, op, "attribute scale is ", scale,
          ", not a finite number above 0");
}

void require_counts(const char* op, const void* in, int32_t input_count, int32_t inputs, const void* out,
                    int32_t output_count, int32_t outputs) {
  require(input_count == inputs, op, "has ", input_count, " inputs, not ", inputs);
  require(output_count == outputs, op, "has ", output_count, " outputs, not ", outputs);
  require(in != nullptr && out != nullptr, op, "was given a null array of inputs or outputs");
}

void require_position(const char* op, int32_t position, int32_t count) {
  require(position >= 0 && position < count, op, "position is ", position, ", not in [0, ", count, ")");
}

void require_arrays(const char* op, const void* in, const void* out, const void* inputs,
                    const void* outputs) {
  require(in != nullptr && out != nullptr && inputs != nullptr && outputs != nullptr, op,
          "enqueue was given a null array");
}

void require_type(const char* op, const char* name, bool holds, DataType type, const char* wanted) {
  require(holds, op, name, " is ", type_name(type), " (", static_cast<int>(type), "), not ", wanted);
}

void require_groups(const char* op, int64_t query_heads, int64_t kv_heads, const char* tensor) {
  require(query_heads <= 0 || kv_heads <= 0 || query_heads % kv_heads == 0, op,
          "query has Hq = ", query_heads, ", not a multiple of the ", tensor, "'s Hkv = ", kv_heads);
}

void agree(const char* op, const char* name, const char* letter, int64_t& size, int64_t other) {
  require(size < 0 || other < 0 || size == other, op, name, " has ", letter, " = ", other,
          ", the tensors before it ", size);
  if (size < 0) size = other;
}

void* stand_in() noexcept {
  alignas(16) static char nothing[16];
  return nothing;
}

}  // namespace vlkv::tensorrt

// TensorRT's two entry points, the only exported functions.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      &vlkv::tensorrt::score_creator(), &vlkv::tensorrt::evict_creator(), &vlkv::tensorrt::attend_creator()};
  count = static_cast<int32_t>(std::size(creators));
  return creators;
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* known) {
  vlkv::tensorrt::finder.store(known);
}
