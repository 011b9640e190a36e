/* Keeps the elements that are not zero, in order, and clears the rest; returns how many there are. */
#include <stdint.h>

int64_t compact(int32_t *x, int64_t n) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] != 0) x[kept++] = x[i];
  for (int64_t i = kept; i < n; ++i) x[i] = 0;
  return kept;
}
