#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "arrays.h"
#include "tuned/operators.h"
#include "vlkv/evict.h"
#include "vlkv/read_words.h"
#include "vlkv/recall.h"
#include "vlkv/runtime.h"
#include "vlkv/score.h"

namespace vlkv::python {
namespace {

// The table of a tuned library at an address that vlkv.ops.tuned gives; 0: this library's own operators.
const Operators& operators_at(uintptr_t address) {
  static const Operators own{.score = [](const ScoreParams& p) { run_cpu(p); },
                             .evict = [](const EvictParams& p) { run_cpu(p); }};
  return address == 0 ? own : *reinterpret_cast<const Operators*>(address);
}

void check_operators(uintptr_t address) {
  const Operators& own = operators_at(0);
  const Operators& other = operators_at(address);
  if (other.version != own.version || other.score_bytes != own.score_bytes ||
      other.evict_bytes != own.evict_bytes) {
    refuse("vlkv", "the tuned library was made from other sources; tune again");
  }
}

int threads_or_own(int threads) { return threads == 0 ? vlkv::threads() : threads; }

void score(const In& query, const In& key, const In& row_position, float scale, float threshold,
           const Out& score_out, const Out& pairs_out, const Out& below_out, int threads,
           uintptr_t operators) {
  const char* op = "score";
  ScoreParams p;
  p.query = view<ConstView>(op, "query", query);
  p.key = view<ConstView>(op, "key", key);
  p.batch = dim(query, 0), p.query_heads = dim(query, 1), p.rows = dim(query, 2), p.head_dim = dim(query, 3);
  p.kv_heads = dim(key, 1), p.slots = dim(key, 2);
  expect_shape(op, "key", key, {p.batch, p.kv_heads, p.slots, row_of(p.key.dtype, p.head_dim)});
  expect_shape(op, "row_position", row_position, {p.batch, p.rows});
  expect_dense_last(op, "row_position", row_position);
  if (row_position.dtype() == nb::dtype<int32_t>()) {
    p.row_position_type = IndexType::kInt32;
  } else {
    expect_type<int64_t>(op, "row_position", row_position, "int32 or int64");
  }
  p.row_position = row_position.data();
  p.row_position_stride_b = stride(row_position, 0);
  p.scale = scale, p.threshold = threshold, p.threads = threads_or_own(threads);
  expect_shape(op, "score_out", score_out, {p.batch, p.kv_heads, p.slots});
  expect_type<float>(op, "score_out", score_out, "float32");
  expect_dense_last(op, "score_out", score_out);
  p.score = static_cast<float*>(score_out.data());
  p.score_stride_b = stride(score_out, 0), p.score_stride_h = stride(score_out, 1);
  p.pairs = per_prompt<int64_t>(op, "pairs_out", pairs_out, p.batch, "int64");
  p.below = per_prompt<int64_t>(op, "below_out", below_out, p.batch, "int64");
  p.accumulate = true;
  validate(p);  // what the tuned library would throw is of a type of its own
  const nb::gil_scoped_release release;
  operators_at(operators).score(p);
}

void evict(const In& key, const In& value, const In& scores, const In& length, const In& keep,
           const In& sinks, const In& recent, const Out& key_out, const Out& value_out,
           const Out& position_out, bool per_head, bool merge, bool zero_tail, int threads,
           uintptr_t operators) {
  const char* op = "evict";
  EvictParams p;
  p.key = view<ConstView>(op, "key", key);
  p.value = view<ConstView>(op, "value", value);
  p.key_out = view<View>(op, "key_out", key_out);
  p.value_out = view<View>(op, "value_out", value_out);
  p.batch = dim(key, 0), p.kv_heads = dim(key, 1), p.slots = dim(key, 2);
  p.head_dim = dim(key, 3) - row_of(p.key.dtype, 0);
  p.capacity = dim(key_out, 2);
  const int64_t key_row = row_of(p.key.dtype, p.head_dim), value_row = row_of(p.value.dtype, p.head_dim);
  expect_shape(op, "value", value, {p.batch, p.kv_heads, p.slots, value_row});
  expect_shape(op, "key_out", key_out, {p.batch, p.kv_heads, p.capacity, key_row});
  expect_shape(op, "value_out", value_out, {p.batch, p.kv_heads, p.capacity, value_row});
  expect_shape(op, "score", scores, {p.batch, p.kv_heads, p.slots});
  expect_type<float>(op, "score", scores, "float32");
  expect_dense_last(op, "score", scores);
  p.score = static_cast<const float*>(scores.data());
  p.score_stride_b = stride(scores, 0), p.score_stride_h = stride(scores, 1);
  p.length = per_prompt<const int64_t>(op, "length", length, p.batch, "int64");
  p.keep = per_prompt<const int64_t>(op, "keep", keep, p.batch, "int64");
  p.sinks = per_prompt<const int64_t>(op, "sinks", sinks, p.batch, "int64");
  p.recent = per_prompt<const int64_t>(op, "recent", recent, p.batch, "int64");
  expect_shape(op, "position_out", position_out, {p.batch, p.kv_heads, p.capacity});
  expect_type<int32_t>(op, "position_out", position_out, "int32");
  expect_dense_last(op, "position_out", position_out);
  p.position_out = static_cast<int32_t*>(position_out.data());
  p.position_stride_b = stride_or(position_out, 0, p.kv_heads * p.capacity);
  p.position_stride_h = stride_or(position_out, 1, p.capacity);
  p.per_head = per_head, p.zero_tail = zero_tail, p.threads = threads_or_own(threads);
  p.merge = merge ? Merge::kNearestMean : Merge::kNone;
  validate(p);
  const nb::gil_scoped_release release;
  operators_at(operators).evict(p);
}

void recall_add(Recall& store, int64_t layer, const In& key, const In& value, const In& kept, int threads) {
  const char* op = "recall";
  const ConstView keys = view<ConstView>(op, "key", key), values = view<ConstView>(op, "value", value);
  const int64_t heads = store.sizes().kv_heads, slots = dim(key, 2), head_dim = store.sizes().head_dim;
  expect_shape(op, "key", key, {1, heads, slots, row_of(keys.dtype, head_dim)});
  expect_shape(op, "value", value, {1, heads, slots, row_of(values.dtype, head_dim)});
  expect_rank(op, "kept", kept, 2);
  expect_shape(op, "kept", kept, {heads, dim(kept, 1)});
  expect_type<int32_t>(op, "kept", kept, "int32");
  expect_dense_last(op, "kept", kept);
  if (kept.size() > 0 && heads > 1 && kept.stride(0) != dim(kept, 1)) refuse(op, "kept is not dense");
  const nb::gil_scoped_release release;
  store.add(layer, keys, values, slots, static_cast<const int32_t*>(kept.data()), dim(kept, 1), threads);
}

uint32_t read_all(const In& words, int threads) {
  const char* op = "read_words";
  expect_rank(op, "words", words, 1);
  expect_type<uint32_t>(op, "words", words, "uint32");
  expect_dense_last(op, "words", words);
  const nb::gil_scoped_release release;
  return read_words(static_cast<const uint32_t*>(words.data()), dim(words, 0), threads);
}

Simd simd_from(const std::string& name) {
  for (const Simd level : {Simd::kPortable, Simd::kAvx2, Simd::kAvx512}) {
    if (name == simd_name(level)) return level;
  }
  refuse("vlkv", "simd is \"", name, "\", not portable, avx2 or avx512");
}

}  // namespace
}  // namespace vlkv::python

NB_MODULE(_native, m) {
  using namespace nanobind::literals;
  namespace py = vlkv::python;
  m.doc() =
      "The native core of vlkv. Arrays are read and written in place; vlkv.ops is the interface to use.";
  m.def("score", &py::score, "query"_a, "key"_a, "row_position"_a, "scale"_a, "threshold"_a, "score_out"_a,
        "pairs_out"_a, "below_out"_a, "threads"_a = 0, "operators"_a = 0,
        "Adds the attention that each key receives to score_out, and the numbers of attended pairs and of "
        "those "
        "below the threshold to pairs_out and below_out. scale 0 means 1/sqrt(D).");
  m.def("evict", &py::evict, "key"_a, "value"_a, "score"_a, "length"_a, "keep"_a, "sinks"_a, "recent"_a,
        "key_out"_a, "value_out"_a, "position_out"_a, "per_head"_a = true, "merge"_a = false,
        "zero_tail"_a = true, "threads"_a = 0, "operators"_a = 0,
        "Writes the kept keys and values, in order, and the slots they had.");
  m.def("read_words", &py::read_all, "words"_a, "threads"_a = 0,
        "The sum of uint32 words modulo 2^32, each read once in wide vectors: probes the read bandwidth.");
  m.def("check_operators", &py::check_operators, "address"_a,
        "Refuses the table of a tuned library that was made from other sources.");
  nanobind::class_<vlkv::Recall>(m, "Recall",
                                 "The evicted tokens of one prompt, which Attend finds by their id.")
      .def(
          nanobind::new_([](int64_t layers, int64_t kv_heads, int64_t head_dim, int64_t page, int64_t pages) {
            return vlkv::Recall::make({layers, kv_heads, head_dim, page, pages});
          }),
          "layers"_a, "kv_heads"_a, "head_dim"_a, "page"_a, "pages"_a)
      .def("add", &py::recall_add, "layer"_a, "key"_a, "value"_a, "kept"_a, "threads"_a = 0,
           "Fills a layer with the slots of key and value [1, Hkv, C, row] that kept [Hkv, count] does not "
           "name.")
      .def_prop_ro("id", &vlkv::Recall::id)
      .def_prop_ro("bytes", &vlkv::Recall::bytes, "Bytes of all pages and bounds.")
      .def_prop_ro("bytes_read", &vlkv::Recall::bytes_read, "Bytes that Attend has read of them so far.");
  m.def("version", &vlkv::version, "The core's version.");
  m.def("simd", [] { return vlkv::simd_name(vlkv::simd()); }, "The instruction set in use.");
  m.def(
      "set_simd", [](const std::string& name) { vlkv::set_simd(py::simd_from(name)); }, "name"_a,
      "Chooses an instruction set, for tests and measurements.");
  m.def(
      "simd_available", [](const std::string& name) { return vlkv::simd_available(py::simd_from(name)); },
      "name"_a, "Whether this processor and this build have an instruction set.");
  m.def("set_threads", &vlkv::set_threads, "threads"_a, "Threads for each call; 0 = all cores.");
  m.def("threads", &vlkv::threads, "Threads that a call uses.");
}
