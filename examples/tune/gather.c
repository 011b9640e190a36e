/* Rows of a table with eight columns, by index. */
#include <stdint.h>

void gather(const float *table, const int32_t *index, float *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < 8; ++c) out[i * 8 + c] = table[(int64_t)index[i] * 8 + c];
}
