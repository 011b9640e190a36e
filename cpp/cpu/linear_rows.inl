// What Linear does with a row of its input before it multiplies. Included inside an instruction set's
// namespace.

// The vector of the first `count` <= kLanes numbers, and zeros.
VLKV_INLINE F some(const float* from, int64_t count) {
  if (count == kLanes) return load<F>(from);
  F v{};
  __builtin_memcpy(&v, from, static_cast<size_t>(count) * sizeof(float));
  return v;
}

VLKV_INLINE void store_some(float* to, F v, int64_t count) {
  if (count == kLanes) return store(to, v);
  __builtin_memcpy(to, &v, static_cast<size_t>(count) * sizeof(float));
}

static void normalize(const float* from, const float* norm, float epsilon, int64_t depth, float* to) {
  const int64_t whole = depth / kLanes * kLanes;
  F squares{};
  for (int64_t k = 0; k < whole; k += kLanes) {
    const F x = load<F>(from + k);
    squares += x * x;
  }
  const F rest = some(from + whole, depth - whole);
  const float sum = sum_lanes(squares + rest * rest);
  const float factor = 1.0F / __builtin_sqrtf(sum / static_cast<float>(depth) + epsilon);
  for (int64_t k = 0; k < whole; k += kLanes) store(to + k, load<F>(from + k) * factor * load<F>(norm + k));
  store_some(to + whole, rest * factor * some(norm + whole, depth - whole), depth - whole);
}

// x / (1 + exp(-x)); NaN at -infinity, as by that definition.
VLKV_INLINE F swish(F x) {
  const F y = x * -1.44269504F;
  const F e = y > 126.0F ? splat(__builtin_inff()) : exp2_below(y);
  return x / (e + 1.0F);
}

static void gate(const float* from, const float* gated, int64_t depth, float* to) {
  const int64_t whole = depth / kLanes * kLanes, rest = depth - whole;
  for (int64_t k = 0; k < whole; k += kLanes) store(to + k, swish(load<F>(from + k)) * load<F>(gated + k));
  store_some(to + whole, swish(some(from + whole, rest)) * some(gated + whole, rest), rest);
}

// The even numbers of a group in front of its odd ones.
VLKV_INLINE void part_evens(const float* from, float* to) {
#if VLKV_LANES == 16
  const F low = load<F>(from), high = load<F>(from + kLanes);
  store(to, __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
  store(to + kLanes,
        __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
#else
  for (int k = 0; k < kDepthGroup; ++k) to[k % 2 * (kDepthGroup / 2) + k / 2] = from[k];
#endif
}

static void arrange(const float* from, int64_t depth, WeightFormat format, float* to) {
  if (!evens_first(format)) {
    __builtin_memcpy(to, from, static_cast<size_t>(depth) * sizeof(float));
    for (int64_t k = depth; k < whole_groups(depth); ++k) to[k] = 0;
    return;
  }
  const int64_t whole = depth / kDepthGroup * kDepthGroup;
  for (int64_t k = 0; k < whole; k += kDepthGroup) part_evens(from + k, to + k);
  if (whole == depth) return;
  float last[kDepthGroup] = {};
  __builtin_memcpy(last, from + whole, static_cast<size_t>(depth - whole) * sizeof(float));
  part_evens(last, to + whole);
}
