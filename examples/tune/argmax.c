/* The first index of the largest element; -1 if there is none. NaN is never larger. */
#include <stdint.h>

int64_t argmax(const float *x, int64_t n) {
  int64_t best = -1;
  float value = -__builtin_inff();
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > value) {
      value = x[i];
      best = i;
    }
  return best;
}
