/* The sum of each column of a rows x columns matrix, in float64, column by column. */
#include <stdint.h>

void axis_sum(const float *m, double *out, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += m[r * columns + c];
    out[c] = sum;
  }
}
