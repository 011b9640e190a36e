// A pool of threads for short loops: it starts on first use, sleeps between loops, and is joined at exit.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace vlkv::cpu {

// Calls body(worker, begin, end) over [0, count) in pieces of at most `grain`, on up to `threads` threads,
// including the caller's (worker 0). The assignment of pieces to workers is not fixed. Returns when all
// pieces are done. body must not throw. A nested loop, or a loop beside another thread's loop, runs on the
// caller's thread only.
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

// Loops in which each thread processes a range of its own in ascending order, and then helps with the rest of
// the others'. So each thread reads contiguous memory, and the threads still end at the same time.
class Ranges {
 public:
  explicit Ranges(int threads)
      : threads_(threads), ranges_(std::make_unique<Range[]>(static_cast<size_t>(threads))) {}

  // Calls body(worker, i, more) once for each i of [0, count); `more`: i + 1 is likely the worker's next.
  template <class Body>
  void run(int64_t count, Body&& body) {
    for (int r = 0; r < threads_; ++r) {
      ranges_[static_cast<size_t>(r)].next.store(count * r / threads_, std::memory_order_relaxed);
      ranges_[static_cast<size_t>(r)].end = count * (r + 1) / threads_;
    }
    parallel_for(threads_, threads_, 1, [&](int worker, int64_t own, int64_t) {
      for (int64_t r = 0; r < threads_; ++r) {
        Range& range = ranges_[static_cast<size_t>((own + r) % threads_)];
        for (;;) {
          const int64_t i = range.next.fetch_add(1, std::memory_order_relaxed);
          if (i >= range.end) break;
          body(worker, i, i + 1 < range.end);
        }
      }
    });
  }

 private:
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  int threads_;
  std::unique_ptr<Range[]> ranges_;
};

// The number of threads for a call that asked for `requested` (0 = the process's setting).
int resolve_threads(int requested);

}  // namespace vlkv::cpu
