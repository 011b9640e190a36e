// Reads memory at full bandwidth, as the reference for the time of memory-bound operations.
#pragma once

#include <cstdint>

#include "vlkv/types.h"

namespace vlkv {

// The sum, modulo 2^32, of `count` words; each is read once, in wide vectors, by `threads` threads (0 = the
// process's setting). Throws InvalidArgument.
VLKV_API uint32_t read_words(const uint32_t* words, int64_t count, int threads = 0);

}  // namespace vlkv
