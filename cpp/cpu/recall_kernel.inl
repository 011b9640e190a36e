// Ratings of pages by the bounds of their keys: vlkv/recall.h. Included after convert.inl, inside the
// namespace of an instruction set.

// The sum over d of the larger of query * low and query * high; NaN if any of them is.
VLKV_INLINE float page_bound(const float* query, const uint16_t* low, const uint16_t* high, int dim) {
  F sums{};
  int d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    const F q = load<F>(query + d);
    sums += larger(q * from_bfloat16(load<H>(low + d)), q * from_bfloat16(load<H>(high + d)));
  }
  if (d < dim) {
    const auto rest = static_cast<size_t>(dim - d);
    F q{};
    H lows{}, highs{};
    __builtin_memcpy(&q, query + d, rest * sizeof(float));
    __builtin_memcpy(&lows, low + d, rest * sizeof(uint16_t));
    __builtin_memcpy(&highs, high + d, rest * sizeof(uint16_t));
    sums += larger(q * from_bfloat16(lows), q * from_bfloat16(highs));
  }
  return sum_lanes(sums);
}

static void rate_pages(const PageBounds& pages, float* rating) {
  for (int page = 0; page < pages.pages; ++page) {
    const uint16_t* low = pages.bounds + int64_t{page} * 2 * pages.head_dim;
    float best = -__builtin_inff();
    for (int h = 0; h < pages.heads; ++h) {
      const float bound =
          page_bound(pages.query + int64_t{h} * pages.head_dim, low, low + pages.head_dim, pages.head_dim);
      const float own = bound - pages.largest[h];
      best = own != own ? __builtin_inff() : own > best ? own : best;
    }
    rating[page] = best;
  }
}
