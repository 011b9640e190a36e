/* The Levenshtein distance of two strings, with one row of at most 4096 numbers. */
#include <stdint.h>

int64_t edit_distance(const uint8_t *a, const uint8_t *b, int64_t m, int64_t n) {
  int32_t row[4097];
  for (int64_t j = 0; j <= n; ++j) row[j] = (int32_t)j;
  for (int64_t i = 1; i <= m; ++i) {
    int32_t corner = row[0];
    row[0] = (int32_t)i;
    for (int64_t j = 1; j <= n; ++j) {
      int32_t above = row[j], best = corner + (a[i - 1] != b[j - 1]);
      if (above + 1 < best) best = above + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      corner = above;
      row[j] = best;
    }
  }
  return row[n];
}
