/* Elements in opposite order. */
#include <stdint.h>

void reverse(const int32_t *x, int32_t *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[n - 1 - i] = x[i];
}
