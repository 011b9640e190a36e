// The fuzz targets, one for each operator, with libFuzzer's signature. `vlkv tune` calls each by its name.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vlkv/types.h"

extern "C" {

VLKV_API int vlkv_fuzz_attend(const uint8_t* data, size_t size);
VLKV_API int vlkv_fuzz_evict(const uint8_t* data, size_t size);
VLKV_API int vlkv_fuzz_linear(const uint8_t* data, size_t size);
VLKV_API int vlkv_fuzz_score(const uint8_t* data, size_t size);

}  // extern "C"
