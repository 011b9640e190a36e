// Types that the operators share: element types, strided views of a cache, errors.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(_WIN32)
#define VLKV_API
#else
#define VLKV_API __attribute__((visibility("default")))
#endif

namespace vlkv {

// kInt8 is for caches on CPUs. A row of D elements is D signed codes, then a float32 scale (not necessarily
// aligned): element d is codes[d] * scale. A row is written with scale = its largest magnitude / 127 and
// codes = elements / scale, rounded to nearest even, in [-127, 127]. A row with a NaN or an infinity has the
// scale NaN. Attend stores keys and values rotated, H . x (cpu/rotate.h), as Score expects keys: a few huge
// elements, which real models' keys have, would take the codes of all others. q . k = (H . q) . (H . k), and
// a result is rotated back. Source: QuaRot, arXiv 2404.00456.
enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kInt8 = 3 };
// The precision of products of many rows. What an operator makes of it, and what it does where the processor
// lacks it, is said with the operator.
enum class Precision : int32_t { kFloat32 = 0, kBFloat16 = 1, kFixed16 = 2 };
enum class IndexType : int32_t { kInt32 = 0, kInt64 = 1 };

// Bytes of an element (for kInt8: of a code), and of a row of `dim` elements.
constexpr int64_t size_of(DType type) { return type == DType::kFloat32 ? 4 : type == DType::kInt8 ? 1 : 2; }
constexpr int64_t row_bytes(DType type, int64_t dim) {
  return dim * size_of(type) + (type == DType::kInt8 ? 4 : 0);
}

// A tensor [B, heads, slots, D]. Strides count elements (for kInt8: bytes); D is contiguous. A slice of a
// larger cache is a view like any other, and a stride of 0 repeats what it strides over (inputs only).
template <class Pointer>
struct BasicView {
  Pointer data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride_b = 0, stride_h = 0, stride_s = 0;
};
using View = BasicView<void*>;
using ConstView = BasicView<const void*>;

// The view of a dense tensor [B, heads, slots, dim].
template <class Pointer>
constexpr BasicView<Pointer> dense(Pointer data, DType dtype, int64_t heads, int64_t slots, int64_t dim) {
  return {data, dtype, heads * slots * dim, slots * dim, dim};
}

// An argument outside its range. The text begins with the operator, as in `[score]`, and names the value and
// the limit.
class VLKV_API InvalidArgument : public std::invalid_argument {
 public:
  explicit InvalidArgument(const std::string& text) : std::invalid_argument(text) {}
};

// A backend that this build or this machine does not have.
class VLKV_API Unavailable : public std::runtime_error {
 public:
  explicit Unavailable(const std::string& text) : std::runtime_error(text) {}
};

}  // namespace vlkv
