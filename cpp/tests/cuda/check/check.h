// What vlkv_cuda_check's files share: memory of the device, random numbers, and one check for each operator.
// A check draws a case, runs it on the device, and throws where the result is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "vlkv/cuda.h"

namespace vlkv::check {

inline void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

inline void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

class Device {
 public:
  explicit Device(size_t bytes) : bytes_(bytes) { require(cudaMalloc(&data_, bytes + 1)); }
  template <class T>
  explicit Device(const std::vector<T>& from) : Device(from.size() * sizeof(T)) {
    require(cudaMemcpy(data_, from.data(), bytes_, cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> all(bytes_ / sizeof(T));
    require(cudaMemcpy(all.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return all;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  // In [0, 1).
  double uniform() { return static_cast<double>(integer(0, (int64_t{1} << 53) - 1)) * 0x1p-53; }
  float normal() { return std::normal_distribution<float>()(engine_); }
  // Elements of a cache: float32, or 16 bits that both types read as numbers of moderate size.
  std::vector<unsigned char> cache(DType type, int64_t count) {
    std::vector<unsigned char> bytes(static_cast<size_t>(count * size_of(type)));
    for (int64_t i = 0; i < count; ++i) {
      const float value = normal();
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      const auto high = static_cast<uint16_t>(bits >> 16);
      const auto half =
          static_cast<uint16_t>((integer(0, 1) << 15) | (integer(12, 15) << 10) | integer(0, 1023));
      const uint16_t narrow = type == DType::kBFloat16 ? high : half;
      if (type == DType::kFloat32)
        std::memcpy(bytes.data() + i * 4, &bits, 4);
      else
        std::memcpy(bytes.data() + i * 2, &narrow, 2);
    }
    return bytes;
  }
  DType type() { return static_cast<DType>(integer(0, 2)); }

 private:
  std::mt19937_64 engine_;
};

template <class Params>
void run(const Params& p) {
  const Device workspace(cuda_workspace_size(p));
  run_cuda(p, workspace.as<void>(), nullptr);
  require(cudaDeviceSynchronize());
}

template <class T>
std::vector<T> filled(int64_t count, T value) {
  return std::vector<T>(static_cast<size_t>(count), value);
}

void check_score(Random& random);
void check_evict(Random& random);
void check_attend(Random& random);
void check_move_slots(Random& random);
void check_pick(Random& random);
void check_draw(Random& random);

}  // namespace vlkv::check
