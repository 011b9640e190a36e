/* The transpose of a rows x columns matrix. */
#include <stdint.h>

void transpose(const float *m, float *out, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = m[r * columns + c];
}
