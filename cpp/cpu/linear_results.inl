// The end of Linear's products of few rows. Included inside an instruction set's namespace, after sums.inl.

// result = the sums of the lanes of acc[column][row], plus bias and residual.
template <int NC, int NR>
VLKV_INLINE void write_results(const FewRows& part, int64_t column, int row, const F (&acc)[NC * NR]) {
  float sums[(NC * NR + 3) / 4 * 4];
  sum_each<NC * NR>(acc, sums);
  for (int c = 0; c < NC; ++c) {
    for (int r = 0; r < NR; ++r) {
      const int64_t at = (row + r) * part.result_stride + column + c;
      const float bias = part.bias == nullptr ? 0.0F : part.bias[column + c];
      const float residual = part.residual == nullptr ? 0.0F : part.residual[at];
      part.result[at] = sums[c * NR + r] + bias + residual;
    }
  }
}
