// The arguments of Evict's kernels, and the arithmetic of kept slots.
#pragma once

#include "cuda/device/types.cuh"

namespace vlkv::cuda {

// The rows of keys or values, strides in bytes.
struct MovedRows {
  const char* from;
  char* to;
  int64_t from_stride_b, from_stride_h, from_stride_s;
  int64_t to_stride_b, to_stride_h, to_stride_s;
};

// A key's bits are looked at in digits, the first one the highest.
inline constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
inline constexpr int kRankBits = 32 - kDigitBits;  // of a key, after its first digit

// What a part of a long cache knows of its selection (evict_parts.cuh).
struct EvictPart {
  uint32_t first_digit;  // of the lowest key to keep
  int32_t rank;          // how many of the keys with that first digit are kept
  int32_t above;         // keys of this part with a higher first digit
  uint32_t end;          // where this part's keys with that first digit end among all candidates
};

struct EvictArgs {
  int64_t batch, kv_heads, slots, head_dim, capacity;
  const float* score;
  int64_t score_stride_b, score_stride_h;
  float* shared_score;  // [B, C], the sum over heads; null where each head selects
  const int64_t *length, *keep, *sinks, *recent;
  int32_t* position;
  int64_t position_stride_b, position_stride_h;
  bool per_head, zero_tail;

  // Blocks of a selection. Where there are several: each one's counts of first digits [selections, parts,
  // kBins], and candidates [selections, C], the keys of one first digit without it.
  int64_t parts;
  uint32_t* part_bins;
  EvictPart* part_facts;
  uint32_t* candidates;

  MovedRows moved[2];  // keys and values, or one of them
  int64_t moves;
  int64_t row_units;  // of a row, in what a kernel moves at a time
  int64_t slot_groups;
};

// A prompt's numbers, clamped so that no index leads outside a buffer.
struct Keeping {
  int64_t length, keep, sinks, recent;
  VLKV_HOST_DEVICE bool all() const { return keep == length; }
};

VLKV_HOST_DEVICE Keeping keeping(const EvictArgs& a, int64_t b) {
  Keeping k;
  k.length = clamped(a.length[b], 0, a.slots);
  k.keep = clamped(a.keep[b], 0, k.length < a.capacity ? k.length : a.capacity);
  k.sinks = clamped(a.sinks[b], 0, k.keep);
  k.recent = clamped(a.recent[b], 0, k.keep - k.sinks);
  return k;
}

// Maps scores to unsigned integers in the same order, with -0 equal to 0; NaN maps to 0, as no number does.
VLKV_HOST_DEVICE uint32_t ordered(uint32_t bits) {
  if ((bits & 0x7fffffffU) > 0x7f800000U) return 0;
  if (bits == 0x80000000U) bits = 0;
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U);
}

// The tokens that are merged into kept slot i: [first, end). `slots` are the kept slots, ascending.
struct Span {
  int64_t first, end;
};
VLKV_HOST_DEVICE Span nearest_to(const int32_t* slots, int64_t i, int64_t keep, int64_t length) {
  return {i == 0 ? 0 : (int64_t{slots[i - 1]} + slots[i]) / 2 + 1,
          i + 1 == keep ? length : (int64_t{slots[i]} + slots[i + 1]) / 2 + 1};
}

}  // namespace vlkv::cuda
