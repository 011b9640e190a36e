/* The sum of products of two vectors, in float64. */
#include <stdint.h>

double dot(const float *x, const float *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (double)x[i] * y[i];
  return sum;
}
