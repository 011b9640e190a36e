/* Running sums of 64-bit integers that wrap. */
#include <stdint.h>

void prefix_sum(const uint64_t *x, uint64_t *out, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += x[i];
    out[i] = sum;
  }
}
