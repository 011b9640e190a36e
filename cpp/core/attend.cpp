#include "vlkv/attend.h"

#include <cmath>

#include "core/check.h"

namespace vlkv {

void validate(const AttendParams& p) {
  const Check check("attend");
  check.range("batch", p.batch, 0, kLargestDim);
  check.range("kv_heads", p.kv_heads, 1, 65536);
  check.range("query_heads", p.query_heads, 1, 65536);
  check.require(p.query_heads % p.kv_heads == 0, "query_heads ", p.query_heads,
                " is not a multiple of kv_heads ", p.kv_heads);
  check.range("rows", p.rows, 0, kLargestDim);
  check.range("slots", p.slots, p.batch > 0 && p.rows > 0 ? 1 : 0, kLargestDim);
  check.range("head_dim", p.head_dim, 1, 4096);
  check.require(p.cache >= DType::kFloat32 && p.cache <= DType::kInt8, "the cache has dtype ",
                static_cast<int32_t>(p.cache), ", not float32 (0), float16 (1), bfloat16 (2) or int8 (3)");
  check.range("precision", static_cast<int64_t>(p.precision), 0, 2);
  const bool reads = p.batch > 0 && p.rows > 0;
  check.require(p.query != nullptr || !reads, "query is null");
  check.require(p.key != nullptr || !reads, "key is null");
  check.require(p.value != nullptr || !reads, "value is null");
  check.require(p.key_cache != nullptr || !reads, "key_cache is null");
  check.require(p.value_cache != nullptr || !reads, "value_cache is null");
  check.require(p.last != nullptr || !reads, "last is null");
  check.require(p.result != nullptr || !reads, "result is null");
  check.require(std::isfinite(p.scale) && p.scale >= 0.0F, "scale is ", p.scale,
                ", not a finite number from 0 (0 = 1/sqrt(head_dim))");
  check.threads(p.threads);
  for (int64_t b = 0; p.recall != nullptr && b < p.batch; ++b) {
    if (p.recall[b] == nullptr) continue;
    const RecallSizes& sizes = p.recall[b]->sizes();
    check.require(p.rows <= 1, "rows is ", p.rows, ", but prompts with evicted tokens take 1");
    check.require(sizes.kv_heads == p.kv_heads && sizes.head_dim == p.head_dim,
                  "the evicted tokens of prompt ", b, " have ", sizes.kv_heads, " KV heads of ",
                  sizes.head_dim, ", not ", p.kv_heads, " of ", p.head_dim);
    check.range("layer", p.layer, 0, sizes.layers - 1);
  }
}

}  // namespace vlkv
