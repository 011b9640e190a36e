// Fuzzes all operators: the first byte decides which.
#include "fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using Target = int (*)(const uint8_t*, size_t);
  constexpr Target kTargets[] = {vlkv_fuzz_score, vlkv_fuzz_evict, vlkv_fuzz_attend, vlkv_fuzz_linear};
  return size == 0 ? 0 : kTargets[data[0] % 4](data + 1, size - 1);
}
