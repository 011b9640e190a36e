// The CPU backend's settings, instruction set and threads, which apply to the whole process.
#pragma once

#include "vlkv/types.h"

namespace vlkv {

enum class Simd : int32_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// "0.1.0".
VLKV_API const char* version();

// The instruction set in use: the best that the processor and the build support, unless set_simd chose
// another.
VLKV_API Simd simd();
VLKV_API const char* simd_name(Simd level);
VLKV_API bool simd_available(Simd level);

// Chooses an instruction set, for tests and measurements. Throws Unavailable.
VLKV_API void set_simd(Simd level);

// Sets the threads of operators whose parameters leave `threads` at 0; 0 = every core that this process may
// use. Throws InvalidArgument below 0 or above 1024. Results never depend on the number of threads.
VLKV_API void set_threads(int threads);
VLKV_API int threads();

}  // namespace vlkv
