/* Rounds x / scale to 8 bits, to the nearest even, within [-127, 127]. */
#include <math.h>
#include <stdint.h>

void quantise(const float *x, float scale, int8_t *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float value = rintf(x[i] / scale);
    if (value > 127) value = 127;
    if (value < -127) value = -127;
    out[i] = (int8_t)value;
  }
}
