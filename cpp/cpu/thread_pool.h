// A pool of threads for short loops: started at the first use, asleep between loops, joined at exit.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace vlkv::cpu {

// Calls body(worker, begin, end) over [0, count) in pieces of at most `grain`, on up to `threads` threads,
// the caller's among them (worker 0). Which worker takes which piece is not fixed. Returns when all pieces
// are done. body must not throw. A loop inside a loop, or beside another thread's loop, runs on its caller's
// thread alone.
void parallel_for_impl(int threads, int64_t count, int64_t grain,
                       void (*body)(void* context, int worker, int64_t begin, int64_t end), void* context);

template <class Body>
void parallel_for(int threads, int64_t count, int64_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_for_impl(
      threads, count, grain,
      [](void* context, int worker, int64_t begin, int64_t end) {
        (*static_cast<Plain*>(context))(worker, begin, end);
      },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

// The number of threads for a call that asked for `requested` (0 = the process's setting).
int resolve_threads(int requested);

}  // namespace vlkv::cpu
