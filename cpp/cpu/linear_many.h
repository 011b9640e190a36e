// Products of more than a few rows, in tiles.
#pragma once

#include "cpu/linear_kernels.h"
#include "cpu/thread_pool.h"
#include "vlkv/linear.h"

namespace vlkv::cpu {

// Runs on a framework's threads if `loop` has a run function, else on this library's.
struct Runner {
  Loop loop;
  int threads = 0;

  template <class Body>
  void run(int64_t count, bool parallel, Body&& body) const {
    if (!parallel || count <= 1) {
      for (int64_t i = 0; i < count; ++i) body(i);
    } else if (loop.run != nullptr) {
      using Plain = std::remove_reference_t<Body>;
      loop.run(
          loop.owner, count, [](void* data, int64_t i) { (*static_cast<Plain*>(data))(i); },
          const_cast<void*>(static_cast<const void*>(std::addressof(body))));
    } else {
      parallel_for(resolve_threads(threads), count, 1, [&](int, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) body(i);
      });
    }
  }
};

Weights weights_of(const LinearParams& params, const LinearProduct& product);

// Whether rows are multiplied in fixed point, those aside that have to stay in float32.
bool in_fixed16(const LinearParams& params);

// Whether rows are multiplied as they lie in the input.
bool as_they_are(const LinearParams& params);

// Row r of those that are multiplied, arranged. `space` has room for `depth` floats.
void prepare_row(const LinearParams& params, int64_t r, float* space, float* to);

void run_many(const LinearParams& params, const Runner& runner);

}  // namespace vlkv::cpu
