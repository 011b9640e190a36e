// Runs a kernel's PTX, as nvcc made it, on the emulation's fibers in place of the kernel compiled for the
// host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlkv::ptx {

// `kernel` is the host's function of the kernel: its mangled name is that of the PTX.
void launch(const void* kernel, int64_t blocks, int threads, const void* arguments, size_t argument_bytes);

}  // namespace vlkv::ptx
