// What Linear's kernels of few rows share, whether weights are widened or codes are multiplied. Included
// inside an instruction set's namespace, after sums.inl.

// Columns whose weights stay in a cache for the next rows.
constexpr int kFewColumns = VLKV_LINEAR_FEW_COLUMNS;

// Prefetch distance in bytes: beyond the end of a page, where the hardware prefetcher stops.
constexpr int kLinearAhead = VLKV_LINEAR_AHEAD;

// Into the first-level cache; or into the second, which is faster for less than four bytes a weight.
template <bool kFirst = false>
VLKV_INLINE void ask(const void* from) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + kLinearAhead;
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, kFirst ? 3 : 2);
}

// Scales and minimums are short streams of their own, which the hardware prefetcher follows late.
constexpr int kScalesAhead = 512;

template <class Number>
VLKV_INLINE void ask_scales(const Number* from) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + kScalesAhead;
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 3);
}

// Prefetches what is kScalesAhead bytes after a block's scale, and after its minimum.
VLKV_INLINE void ask_scales(const Weights& weights, int64_t block) {
  if (weights.scale_type == DType::kFloat16) {
    ask_scales(static_cast<const uint16_t*>(weights.scales) + block);
  } else {
    ask_scales(static_cast<const float*>(weights.scales) + block);
  }
  if (weights.minimums != nullptr) ask_scales(weights.minimums + block);
}

// Calls multiply<NC, NR>(column, row) for all columns and rows of a part, NR = 8 (if kMostRows is), 4, 2 or 1
// rows at a time, and NC = columns_at_once(NR) columns, or 1.
template <int kMostRows, class AtOnce, class Multiply>
VLKV_INLINE void divide_part(const FewRows& part, AtOnce columns_at_once, Multiply multiply) {
  for (int done = 0; done < part.columns; done += kFewColumns) {
    const int columns = part.columns - done < kFewColumns ? part.columns - done : kFewColumns;
    const int64_t column = part.column + done;
    const auto each_column = [&]<int NR>(int row) __attribute__((always_inline)) {
      constexpr int kColumns = columns_at_once(NR);
      int c = 0;
      for (; c + kColumns <= columns; c += kColumns)
        multiply.template operator()<kColumns, NR>(column + c, row);
      if constexpr (kColumns > 1) {
        for (; c < columns; ++c) multiply.template operator()<1, NR>(column + c, row);
      }
    };
    int row = 0;
    if constexpr (kMostRows >= 8) {
      for (; row + 8 <= part.rows; row += 8) each_column.template operator()<8>(row);
    }
    for (; row + 4 <= part.rows; row += 4) each_column.template operator()<4>(row);
    for (; row + 2 <= part.rows; row += 2) each_column.template operator()<2>(row);
    for (; row < part.rows; ++row) each_column.template operator()<1>(row);
  }
}

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
