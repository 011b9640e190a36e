/* A filter with eight taps over n outputs. */
#include <stdint.h>

void fir(const float *x, const float *taps, float *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float sum = 0;
    for (int64_t t = 0; t < 8; ++t) sum += taps[t] * x[i + t];
    out[i] = sum;
  }
}
