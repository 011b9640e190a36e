#include "vlkv/evict.h"

#include "core/check.h"

namespace vlkv {

void validate(const EvictParams& p) {
  const Check check("evict");
  check.range("batch", p.batch, 0, kLargestDim);
  check.range("kv_heads", p.kv_heads, 1, 65536);
  check.range("slots", p.slots, 0, kLargestDim);
  check.range("head_dim", p.head_dim, 1, 4096);
  check.range("capacity", p.capacity, 0, kLargestDim);
  const int64_t read = p.batch > 0 ? p.slots : 0;
  const int64_t written = p.batch > 0 ? p.capacity : 0;
  check.cache("key", p.key, read);
  check.cache("value", p.value, read);
  check.cache("key_out", p.key_out, written);
  check.cache("value_out", p.value_out, written);
  check.require(p.key.dtype == p.key_out.dtype, "key_out has dtype ", static_cast<int>(p.key_out.dtype),
                ", key has ", static_cast<int>(p.key.dtype));
  check.require(p.value.dtype == p.value_out.dtype, "value_out has dtype ",
                static_cast<int>(p.value_out.dtype), ", value has ", static_cast<int>(p.value.dtype));
  for (const View* out : {&p.key_out, &p.value_out}) {
    const char* name = out == &p.key_out ? "key_out" : "value_out";
    const int64_t row = row_bytes(out->dtype, p.head_dim) / size_of(out->dtype);
    check.require(p.capacity <= 1 || p.batch == 0 || out->stride_s >= row, name, "'s stride over slots ",
                  out->stride_s, " is less than a row's ", row);
    check.require(p.kv_heads == 1 || written == 0 || out->stride_h >= row, name, "'s stride over heads ",
                  out->stride_h, " is less than a row's ", row);
    check.require(p.batch <= 1 || written == 0 || out->stride_b >= row, name, "'s stride over prompts ",
                  out->stride_b, " is less than a row's ", row);
  }
  check.require(p.score != nullptr || read == 0, "score is null");
  check.require(p.score_stride_b >= 0 && p.score_stride_h >= 0, "score has a negative stride (",
                p.score_stride_b, ", ", p.score_stride_h, ")");
  check.require(p.position_out != nullptr || written == 0, "position_out is null");
  check.require(p.kv_heads == 1 || written == 0 || p.position_stride_h >= p.capacity,
                "position_out's stride over heads ", p.position_stride_h, " is less than capacity ",
                p.capacity);
  check.require(p.batch <= 1 || written == 0 || p.position_stride_b >= p.capacity,
                "position_out's stride over prompts ", p.position_stride_b, " is less than capacity ",
                p.capacity);
  check.require(p.position_stride_b >= 0 && p.position_stride_h >= 0, "position_out has a negative stride");
  check.require(p.batch == 0 || (p.length && p.keep && p.sinks && p.recent),
                "length, keep, sinks or recent is null");
  check.require(p.merge == Merge::kNone || p.merge == Merge::kNearestMean, "merge is ",
                static_cast<int>(p.merge), ", not none (0) or nearest_mean (1)");
  check.threads(p.threads);
}

}  // namespace vlkv
