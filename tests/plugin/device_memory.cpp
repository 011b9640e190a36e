#include "device_memory.h"

#include <cuda_runtime_api.h>

#include <cstdio>

namespace {

bool succeeded(cudaError_t error) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  return error == cudaSuccess;
}

void release(void* memory) { cudaFree(memory); }

}  // namespace

DeviceMemory device_memory(size_t bytes, const void* from) {
  void* memory = nullptr;
  if (!succeeded(cudaMalloc(&memory, bytes + 1))) return {nullptr, release};
  DeviceMemory owned(memory, release);
  const cudaError_t error = from != nullptr ? cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice)
                                            : cudaMemset(memory, 0xff, bytes);
  return succeeded(error) ? std::move(owned) : DeviceMemory(nullptr, release);
}

bool from_device(void* to, const DeviceMemory& from, size_t bytes) {
  return succeeded(cudaDeviceSynchronize()) &&
         succeeded(cudaMemcpy(to, from.get(), bytes, cudaMemcpyDeviceToHost));
}
