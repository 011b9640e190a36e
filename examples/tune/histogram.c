/* Counts of each byte. */
#include <stdint.h>

void histogram(const uint8_t *x, int64_t *counts, int64_t n) {
  for (int64_t i = 0; i < 256; ++i) counts[i] = 0;
  for (int64_t i = 0; i < n; ++i) ++counts[x[i]];
}
