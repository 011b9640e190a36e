/* The square root of the sum of squares, in float64. */
#include <math.h>
#include <stdint.h>

double norm(const double *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sqrt(sum);
}
