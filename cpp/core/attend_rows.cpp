#include "vlkv/attend_rows.h"

#include <cmath>

#include "core/check.h"

namespace vlkv {
namespace {

// Rows are copied 16 bytes at a time. The stride of an axis with one element is not checked.
template <class V>
void require_rows_on_16(const Check& check, const char* name, const V& view, int64_t batch, int64_t heads,
                        int64_t slots) {
  check.require(reinterpret_cast<uintptr_t>(view.data) % 16 == 0, name,
                "'s address is not a multiple of 16 bytes");
  for (const auto& [steps, stride] :
       {std::pair{batch, view.stride_b}, {heads, view.stride_h}, {slots, view.stride_s}}) {
    check.require(steps <= 1 || stride % 8 == 0, name, " has stride ", stride,
                  ", not a multiple of 8 elements (16 bytes)");
  }
}

}  // namespace

void validate(const AttendRowsParams& p) {
  const Check check("attend");
  check.range("batch", p.batch, 0, kLargestDim);
  check.range("kv_heads", p.kv_heads, 1, 65536);
  check.range("query_heads", p.query_heads, 1, 65536);
  check.require(p.query_heads % p.kv_heads == 0, "query_heads ", p.query_heads,
                " is not a multiple of kv_heads ", p.kv_heads);
  check.range("rows", p.rows, 0, kLargestDim);
  check.range("rows * query_heads / kv_heads", p.rows * (p.query_heads / p.kv_heads), 0, kLargestDim);
  check.range("slots", p.slots, 0, kLargestDim);
  check.range("head_dim", p.head_dim, 8, kLargestAttendDim);
  check.require(p.head_dim % 8 == 0, "head_dim is ", p.head_dim, ", not a multiple of 8");
  check.require(p.query.dtype == DType::kFloat16 || p.query.dtype == DType::kBFloat16, "query has dtype ",
                static_cast<int32_t>(p.query.dtype), ", not float16 (1) or bfloat16 (2)");
  const int64_t rows = p.batch * p.rows, cached = p.batch * p.slots;
  const auto tensor = [&](const char* name, const auto& view, int64_t heads, int64_t slots, int64_t count) {
    check.view(name, view, count);
    check.require(view.dtype == p.query.dtype, name, " has dtype ", static_cast<int32_t>(view.dtype),
                  ", query ", static_cast<int32_t>(p.query.dtype));
    require_rows_on_16(check, name, view, p.batch, heads, slots);
  };
  tensor("query", p.query, p.query_heads, p.rows, rows);
  tensor("key", p.key, p.kv_heads, p.rows, rows);
  tensor("value", p.value, p.kv_heads, p.rows, rows);
  tensor("key_cache", p.key_cache, p.kv_heads, p.slots, cached);
  tensor("value_cache", p.value_cache, p.kv_heads, p.slots, cached);
  tensor("result", p.result, p.query_heads, p.rows, rows);
  check.require(p.length != nullptr || p.batch == 0, "length is null");
  check.require(p.count != nullptr || p.batch == 0, "count is null");
  check.require(std::isfinite(p.scale) && p.scale >= 0.0F, "scale is ", p.scale,
                ", not a finite number from 0 (0 = 1/sqrt(head_dim))");
}

}  // namespace vlkv
