// Sums of several vectors' lanes, which Attend and Linear take. Included inside an instruction set's
// namespace.

// Partial sums of four vectors' lanes, in the order of the vectors, in every 128 bits of the result; the sums
// over all 128-bit parts are complete.
VLKV_INLINE F sum_by_quads(const F (&v)[4]) {
#if VLKV_LANES == 4
#define VLKV_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define VLKV_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define VLKV_LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define VLKV_HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#elif VLKV_LANES == 8
#define VLKV_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define VLKV_HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define VLKV_LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define VLKV_HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define VLKV_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define VLKV_HIGH(a, b) \
  __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define VLKV_LOW_PAIRS(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define VLKV_HIGH_PAIRS(a, b) \
  __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#endif
  const F x = VLKV_LOW(v[0], v[1]) + VLKV_HIGH(v[0], v[1]), y = VLKV_LOW(v[2], v[3]) + VLKV_HIGH(v[2], v[3]);
  return VLKV_LOW_PAIRS(x, y) + VLKV_HIGH_PAIRS(x, y);
#undef VLKV_LOW
#undef VLKV_HIGH
#undef VLKV_LOW_PAIRS
#undef VLKV_HIGH_PAIRS
}

// sums[n] = the sum of v[n]'s lanes.
template <int N>
VLKV_INLINE void sum_each(const F (&v)[N], float (&sums)[(N + 3) / 4 * 4]) {
#pragma GCC unroll 8
  for (int n = 0; n < N; n += 4) {
    F four[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) four[i] = n + i < N ? v[n + i] : F{};
    float quads[kLanes];
    store(quads, sum_by_quads(four));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      float sum = quads[i];
#pragma GCC unroll 4
      for (int quad = 4; quad < kLanes; quad += 4) sum += quads[quad + i];
      sums[n + i] = sum;
    }
  }
}
