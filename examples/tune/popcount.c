/* The number of set bits. */
#include <stdint.h>

int64_t popcount(const uint64_t *x, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    for (uint64_t word = x[i]; word; word &= word - 1) ++count;
  return count;
}
