// The table of opcodes, which two files fill: steps.cpp and together.cpp; and arithmetic that both use.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <unordered_map>

#include "cuda/ptx/thread.h"

namespace vlkv::ptx {

using Table = std::unordered_map<std::string, Step>;

// Barriers, and what threads do together: shuffles, votes, reductions, matrices, copies to shared memory.
void add_steps_together(Table& all);

// Integers wrap around.
template <class T, class F>
T wrapped(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(F{}(static_cast<U>(a), static_cast<U>(b)));
  } else {
    return F{}(a, b);
  }
}
template <class T>
struct Add {
  T operator()(T a, T b) const { return wrapped<T, std::plus<>>(a, b); }
};
template <class T>
struct Smaller {
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
    return std::min(a, b);
  }
};
template <class T>
struct Larger {
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
    return std::max(a, b);
  }
};

}  // namespace vlkv::ptx
