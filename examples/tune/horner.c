/* A polynomial of degree seven at each point. */
#include <stdint.h>

void horner(const double *x, const double *c, double *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    double value = 0;
    for (int64_t k = 7; k >= 0; --k) value = value * x[i] + c[k];
    out[i] = value;
  }
}
