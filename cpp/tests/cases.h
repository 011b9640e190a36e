// Random inputs for the suites. Every run draws anew from a printed seed; VLKV_TEST_SEED repeats one.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "vlkv/types.h"

namespace vlkv::test {

uint64_t seed();

class Random {
 public:
  explicit Random(uint64_t salt) : engine_(seed() * 1000003 + salt) {}
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  float normal(float spread = 1.0F) { return std::normal_distribution<float>(0.0F, spread)(engine_); }
  template <class T>
  T pick(std::initializer_list<T> from) {
    return from.begin()[integer(0, static_cast<int64_t>(from.size()) - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

// A tensor [b, h, s, d] in memory with gaps, as a slice of a larger cache has, and the float32 values it
// holds.
class Tensor {
 public:
  // Gaps are odd numbers of `unit` elements.
  Tensor(Random& random, DType type, int64_t b, int64_t h, int64_t s, int64_t d, float spread, bool gaps,
         int64_t unit = 1);

  ConstView view() const { return {bytes_.data(), type_, stride_b_, stride_h_, stride_s_}; }
  View view() { return {bytes_.data(), type_, stride_b_, stride_h_, stride_s_}; }
  double at(int64_t b, int64_t h, int64_t s, int64_t d) const;
  void set(int64_t b, int64_t h, int64_t s, int64_t d, float value);
  const std::vector<unsigned char>& bytes() const { return bytes_; }

 private:
  int64_t offset(int64_t b, int64_t h, int64_t s, int64_t d) const {
    return (b * stride_b_ + h * stride_h_ + s * stride_s_ + d) * size_of(type_);
  }
  DType type_;
  int64_t stride_b_, stride_h_, stride_s_;
  std::vector<unsigned char> bytes_;
};

// Every kernel table that this machine can run, and the sixteen-lane code compiled for it.
struct NamedKernels {
  const char* name;
  const cpu::Kernels* table;
};
std::vector<NamedKernels> all_kernels();

// Uses a table for as long as it lives.
class WithKernels {
 public:
  explicit WithKernels(const cpu::Kernels& table) : before_(cpu::kernels()) { cpu::use_kernels(table); }
  ~WithKernels() { cpu::use_kernels(before_); }
  WithKernels(const WithKernels&) = delete;

 private:
  const cpu::Kernels& before_;
};

// Float conversions that share nothing with the kernels.
double half_to_double(uint16_t bits);
double bfloat16_to_double(uint16_t bits);

}  // namespace vlkv::test
