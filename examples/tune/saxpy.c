/* z = a x + y over n elements. */
#include <stdint.h>

void saxpy(float a, const float *x, const float *y, float *z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) z[i] = a * x[i] + y[i];
}
