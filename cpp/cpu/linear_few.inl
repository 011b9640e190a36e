// Linear's inner loops for few rows: lanes are consecutive weights of a column, each read once for up to
// eight rows. Included inside an instruction set's namespace.

// Registers of sums, one for each pair of a row and a column. The order of a sum does not depend on the
// numbers of rows and columns.
constexpr int kFewSums = kAccumulators;
constexpr int kFewRowsAtOnce = kAccumulators >= 24 ? 8 : 4;
constexpr int kFewColumnsAtOnce = VLKV_LINEAR_COLUMNS_AT_ONCE;
// Those of a single row, which waits for memory: processors fetch ahead of one long stream, hardly of several
// short ones.
constexpr int kRowColumnsAtOnce = VLKV_LINEAR_ROW_COLUMNS_AT_ONCE;

template <int NC, int NR>
VLKV_INLINE void add_group(const F (&w)[NC][kGroupVectors], const float* input, int64_t stride,
                           F (&acc)[NC * NR]) {
#pragma GCC unroll 4
  for (int v = 0; v < kGroupVectors; ++v) {
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) {
      const F x = load<F>(input + r * stride + v * kLanes);
#pragma GCC unroll 8
      for (int c = 0; c < NC; ++c) acc[c * NR + r] += w[c][v] * x;
    }
  }
}

template <class Column, size_t... kIndex>
struct Columns {
  Column each[sizeof...(kIndex)];
  Columns(const Weights& weights, int64_t first, std::index_sequence<kIndex...>)
      : each{Column(weights, first + static_cast<int64_t>(kIndex))...} {}
};

template <class Column, size_t... kIndex>
VLKV_INLINE Columns<Column, kIndex...> columns_from(const Weights& weights, int64_t first,
                                                    std::index_sequence<kIndex...> index) {
  return {weights, first, index};
}

template <class Column, int NC, int NR>
static __attribute__((noinline)) void few(const FewRows& part, int64_t column, int row) {
  const Weights& weights = part.weights;
  const float* input = part.input + row * part.stride;
  auto columns = columns_from<Column>(weights, column, std::make_index_sequence<NC>());
  Scales scales[NC];
  F acc[NC * NR] = {};
  const int64_t end =
      Column::kBlocks ? whole_groups(weights.depth) : weights.depth / kDepthGroup * kDepthGroup;
  const int64_t span = Column::kBlocks ? weights.block : end;
  for (int64_t block = 0, k = 0; k < end; ++block) {
    if (block % kScalesAtOnce == 0) {
      for (int c = 0; c < NC; ++c) columns.each[c].fill(block, scales[c]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < NC; ++c) columns.each[c].enter(block, scales[c]);
    for (const int64_t stop = k + span < end ? k + span : end; k < stop; k += kDepthGroup) {
      F w[NC][kGroupVectors];
#pragma GCC unroll 8
      for (int c = 0; c < NC; ++c) columns.each[c].group(k, w[c]);
      add_group<NC, NR>(w, input + k, part.stride, acc);
    }
  }
  if (!Column::kBlocks && end < weights.depth) {
    F w[NC][kGroupVectors];
    for (int c = 0; c < NC; ++c) columns.each[c].rest(end, static_cast<int>(weights.depth - end), w[c]);
    add_group<NC, NR>(w, input + end, part.stride, acc);
  }
  write_results<NC, NR>(part, column, row, acc);
}

template <class Column>
static void few_rows(const FewRows& part) {
  constexpr auto kAtOnce = [](int rows) {
    const int most = rows == 1 ? kRowColumnsAtOnce : kFewColumnsAtOnce;
    return kFewSums / rows < most ? kFewSums / rows : most;
  };
  divide_part<kFewRowsAtOnce>(part, kAtOnce, [&]<int NC, int NR>(int64_t column, int row) {
    few<Column, NC, NR>(part, column, row);
  });
}

static void multiply_few(const FewRows& part) {
  with_column(part.weights, [&]<class Column>() { few_rows<Column>(part); });
}
