// Converts NumPy arrays (or any object with the buffer protocol or DLPack) to the core's views, without
// copies.
#pragma once

#include <nanobind/ndarray.h>

#include <sstream>
#include <string>

#include "vlkv/types.h"

namespace vlkv::python {

namespace nb = nanobind;

using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;

template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << '[' << op << "] ";
  (text << ... << parts);
  throw InvalidArgument(text.str());
}

template <class Array>
std::string shape_of(const Array& array) {
  std::string text = "(";
  for (size_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + ")";
}

inline int64_t dim(const auto& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

template <class Array>
void expect_rank(const char* op, const char* name, const Array& array, size_t rank) {
  if (array.ndim() != rank) refuse(op, name, " has shape ", shape_of(array), ", not ", rank, " dimensions");
}

template <class Array>
void expect_shape(const char* op, const char* name, const Array& array,
                  std::initializer_list<int64_t> shape) {
  expect_rank(op, name, array, shape.size());
  std::string wanted;
  bool same = true;
  size_t axis = 0;
  for (const int64_t n : shape) {
    wanted += (axis ? ", " : "") + std::to_string(n);
    same = same && dim(array, axis++) == n;
  }
  if (!same) refuse(op, name, " has shape ", shape_of(array), ", not (", wanted, ")");
}

// float32, float16, bfloat16, int8; uint16 holds the bits of bfloat16, which NumPy has no type for.
template <class Array>
DType dtype_of(const char* op, const char* name, const Array& array) {
  const nb::dlpack::dtype type = array.dtype();
  if (type == nb::dtype<float>()) return DType::kFloat32;
  if (type == nb::dtype<uint16_t>()) return DType::kBFloat16;
  if (type == nb::dtype<int8_t>()) return DType::kInt8;
  if (type.lanes == 1 && type.bits == 16) {
    if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float)) return DType::kFloat16;
    if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat)) return DType::kBFloat16;
  }
  refuse(op, name, " is not float32, float16, bfloat16 (as uint16) or int8");
}

template <class T, class Array>
void expect_type(const char* op, const char* name, const Array& array, const char* type) {
  if (array.dtype() != nb::dtype<T>()) refuse(op, name, " is not ", type);
}

// Checks that the last axis is dense. Axes with one element may have any stride.
template <class Array>
void expect_dense_last(const char* op, const char* name, const Array& array) {
  const size_t last = array.ndim() - 1;
  if (array.size() > 0 && array.shape(last) > 1 && array.stride(last) != 1) {
    refuse(op, name, "'s last axis has stride ", array.stride(last), ", not 1");
  }
}

template <class Array>
int64_t stride(const Array& array, size_t axis) {
  return array.shape(axis) > 1 ? array.stride(axis) : 0;
}

// For outputs: the stride of a dense array if the axis has a single element.
template <class Array>
int64_t stride_or(const Array& array, size_t axis, int64_t dense) {
  return array.shape(axis) > 1 ? array.stride(axis) : dense;
}

template <class Result, class Array>
Result view(const char* op, const char* name, const Array& array) {
  expect_rank(op, name, array, 4);
  expect_dense_last(op, name, array);
  return {array.data(), dtype_of(op, name, array), stride(array, 0), stride(array, 1), stride(array, 2)};
}

// The elements of the last axis of a cache of that dtype with heads of `dim`.
inline int64_t row_of(DType type, int64_t dim) { return row_bytes(type, dim) / size_of(type); }

// A vector with one number for each prompt.
template <class T, class Array>
auto* per_prompt(const char* op, const char* name, const Array& array, int64_t batch, const char* type) {
  expect_shape(op, name, array, {batch});
  expect_type<T>(op, name, array, type);
  expect_dense_last(op, name, array);
  if constexpr (std::is_const_v<T>) {
    return static_cast<const T*>(array.data());
  } else {
    return static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data())));
  }
}

}  // namespace vlkv::python
