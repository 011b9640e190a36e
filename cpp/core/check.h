// Refuses arguments with a text of one form: `[operator] text with the value and the limit`.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>

#include "vlkv/types.h"

namespace vlkv {

// Slots, rows and positions are 32-bit inside the kernels.
inline constexpr int64_t kLargestDim = std::numeric_limits<int32_t>::max() - 1;

class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  template <class... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (holds) return;
    std::ostringstream text;
    text << '[' << op_ << "] ";
    (text << ... << parts);
    throw InvalidArgument(text.str());
  }

  void range(const char* name, int64_t value, int64_t low, int64_t high) const {
    require(value >= low && value <= high, name, " is ", value, ", not in [", low, ", ", high, "]");
  }

  void threads(int value) const { range("threads", value, 0, 1024); }

  // Checks the `view` of a tensor [batch, heads, slots, dim].
  template <class V>
  void view(const char* name, const V& view, int64_t count) const {
    require(view.dtype != DType::kInt8, name, " has dtype 3, int8, which only caches on CPUs have");
    cache(name, view, count);
  }

  // Checks the `view` of a cache, which may hold int8.
  template <class V>
  void cache(const char* name, const V& view, int64_t count) const {
    const int32_t type = static_cast<int32_t>(view.dtype);
    require(type >= 0 && type <= 3, name, " has dtype ", type,
            ", not float32 (0), float16 (1), bfloat16 (2) or int8 (3)");
    require(view.data != nullptr || count == 0, name, " is null");
    require(view.stride_b >= 0 && view.stride_h >= 0 && view.stride_s >= 0, name, " has a negative stride (",
            view.stride_b, ", ", view.stride_h, ", ", view.stride_s, ")");
  }

 private:
  const char* op_;
};

}  // namespace vlkv
