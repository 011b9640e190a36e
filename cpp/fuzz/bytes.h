// Random bytes as sizes and contents, and what the fuzz targets share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "vlkv/types.h"

namespace vlkv::fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() { return at_ < end_ ? *at_++ : uint8_t{0}; }

  // Usually a number of [0, small]; sometimes any number.
  int64_t number(int64_t small) { return number(0, small); }

  // Usually a number of [low, high]; sometimes any number. Ranges above 250 take one byte more.
  int64_t number(int64_t low, int64_t high) {
    const uint8_t kind = byte();
    const int64_t range = high - low + 1;
    if (kind < 250) return low + (range > 250 ? kind << 8 | byte() : kind) % range;
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<int64_t>(kind < 252 ? value % 100000 : value);
  }

  template <class T>
  std::vector<T> fill(size_t count) {
    std::vector<T> values(count);
    auto* to = reinterpret_cast<uint8_t*>(values.data());
    for (size_t i = 0; i < count * sizeof(T); ++i) to[i] = byte();
    return values;
  }

 private:
  const uint8_t *at_, *end_;
};

// A stream of contents that four bytes decide: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
class Contents {
 public:
  // `tame`: numbers are finite and small; else some are any bit pattern.
  Contents(Bytes& in, bool tame) : tame(tame) {
    for (int i = 0; i < 4; ++i) state_ = state_ << 8 | in.byte();
  }

  uint32_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15U;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
    z = (z ^ z >> 27) * 0x94d049bb133111ebU;
    return static_cast<uint32_t>(z >> 32);
  }

  int64_t below(int64_t count) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(count)); }

  // A number of [-2, 2).
  float number() {
    const uint32_t drawn = bits();
    if (!tame && drawn % 16 == 0) return from_bits(bits());
    return static_cast<float>(static_cast<int32_t>(drawn)) * 0x1p-30F;
  }

  // The bits of a float16 or bfloat16 number, which lies in (-2, 2) where contents are tame.
  uint16_t half(bool bfloat16) {
    const uint32_t drawn = bits();
    if (!tame && drawn % 16 == 0) return static_cast<uint16_t>(drawn >> 16);
    if (!bfloat16) return static_cast<uint16_t>((drawn & 0x83ffU) | (8U + (drawn >> 16) % 8U) << 10);
    return static_cast<uint16_t>((drawn & 0x807fU) | (120U + (drawn >> 16) % 8U) << 7);
  }

  void fill(std::vector<float>& values) {
    for (float& x : values) x = number();
  }

  // Writes `count` numbers of a type of floats.
  void fill(uint8_t* to, DType type, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const float wide = type == DType::kFloat32 ? number() : 0.0F;
      const uint16_t narrow = type == DType::kFloat32 ? uint16_t{0} : half(type == DType::kBFloat16);
      std::memcpy(to + i * size_of(type), type == DType::kFloat32 ? static_cast<const void*>(&wide) : &narrow,
                  static_cast<size_t>(size_of(type)));
    }
  }

  static float from_bits(uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, 4);
    return value;
  }

  const bool tame;

 private:
  uint64_t state_ = 0;
};

// Ends the process unless `holds`, and names the line that asked.
inline void check(bool holds, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%d: a check failed\n", file, line);
  std::abort();
}

// A product that may overflow without undefined behaviour.
inline int64_t product(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}

// A sum that may overflow without undefined behaviour.
inline int64_t sum(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

// The elements of a shape, or -1 if there are more, in any dimension, than a target allocates, or a size is
// negative.
inline int64_t elements(std::initializer_list<int64_t> shape) {
  double count = 1;
  for (const int64_t size : shape) {
    if (size < 0 || size > 1 << 20) return -1;
    count *= static_cast<double>(size);
  }
  return count > 1 << 20 ? -1 : static_cast<int64_t>(count);
}

// Half the distance of float32 numbers at 1.
inline constexpr double kUnit = 0x1p-24;

inline double half_to_double(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * HUGE_VAL;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

// Element i of an array of floats of a type, which need not be aligned.
inline double element(const void* data, DType type, int64_t i) {
  const uint8_t* from = static_cast<const uint8_t*>(data) + i * size_of(type);
  if (type == DType::kFloat32) {
    float value = 0;
    std::memcpy(&value, from, 4);
    return static_cast<double>(value);
  }
  uint16_t bits = 0;
  std::memcpy(&bits, from, 2);
  if (type == DType::kFloat16) return half_to_double(bits);
  return static_cast<double>(Contents::from_bits(static_cast<uint32_t>(bits) << 16));
}

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The same bits, or a NaN of any kind in both.
inline bool same_numbers(const float* a, const float* b, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (std::memcmp(a + i, b + i, 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return true;
}

inline bool same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_numbers(a.data(), b.data(), a.size());
}

// Runs a call; returns the text with which it refused, or "".
template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const InvalidArgument& error) {
    return error.what();
  } catch (const std::bad_alloc&) {
    return "out of memory";
  }
  return "";
}

}  // namespace vlkv::fuzz
