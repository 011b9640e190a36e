// Device memory for the driver. In a file of its own, since plugin/cuda_types stands in for CUDA's headers
// wherever TensorRT's are included.
#pragma once

#include <cstddef>
#include <memory>

using DeviceMemory = std::unique_ptr<void, void (*)(void*)>;

// Null and a text on stderr where it fails.
DeviceMemory device_memory(size_t bytes, const void* from = nullptr);
// Waits for all work, then copies; false and a text on stderr where something failed.
bool from_device(void* to, const DeviceMemory& from, size_t bytes);
