/* Elements limited to [low, high]; NaN stays. */
#include <stdint.h>

void clamp(float *x, float low, float high, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] < low) x[i] = low;
    else if (x[i] > high) x[i] = high;
  }
}
