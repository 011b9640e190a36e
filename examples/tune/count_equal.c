/* How many bytes equal a value. */
#include <stdint.h>

int64_t count_equal(const uint8_t *x, uint8_t value, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (x[i] == value) ++count;
  return count;
}
