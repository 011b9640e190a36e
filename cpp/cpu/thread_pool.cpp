#include "cpu/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/check.h"
#include "vlkv/runtime.h"

namespace vlkv {
namespace {

std::atomic<int> g_threads{0};

int cores() {
  static const int count = [] {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }();
  return count;
}

}  // namespace

void set_threads(int threads) {
  Check("vlkv").threads(threads);
  g_threads.store(threads, std::memory_order_relaxed);
}

int threads() { return cpu::resolve_threads(0); }

namespace cpu {

int resolve_threads(int requested) {
  if (requested > 0) return requested;
  const int set = g_threads.load(std::memory_order_relaxed);
  return set > 0 ? set : cores();
}

namespace {

struct Loop {
  void (*body)(void*, int, int64_t, int64_t);
  void* context;
  int64_t count, grain;
  std::atomic<int64_t> next{0};

  void work(int worker) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      body(context, worker, begin, std::min(begin + grain, count));
    }
  }
};

class Pool {
 public:
  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : workers_) thread.join();
  }

  void run(Loop& loop, int helpers) {
    {
      const std::lock_guard lock(mutex_);
      try {
        while (static_cast<int>(workers_.size()) < helpers) {
          const int index = static_cast<int>(workers_.size());
          workers_.emplace_back([this, index] { serve(index); });
        }
      } catch (const std::system_error&) {
        helpers = static_cast<int>(workers_.size());  // as many as the system allows
      }
      loop_ = &loop;
      helpers_ = helpers;
      ++round_;
    }
    wake_.notify_all();
    loop.work(0);
    std::unique_lock lock(mutex_);
    loop_ = nullptr;  // do not wait for helpers that have not woken up yet
    done_.wait(lock, [this] { return busy_ == 0; });
  }

  std::mutex owner;  // one loop at a time

 private:
  void serve(int index) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || (loop_ != nullptr && round_ != seen && index < helpers_); });
      if (stop_) return;
      seen = round_;
      ++busy_;
      Loop* loop = loop_;
      lock.unlock();
      loop->work(index + 1);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Loop* loop_ = nullptr;
  int helpers_ = 0, busy_ = 0;
  uint64_t round_ = 0;
  bool stop_ = false;
};

// A child of fork() has none of its parent's threads: it makes a pool of its own and does not touch the
// parent's.
struct PoolOfProcess {
  std::mutex guard;
  std::unique_ptr<Pool> pool;
  pid_t owner = 0;

  ~PoolOfProcess() {
    if (owner != getpid()) static_cast<void>(pool.release());
  }

  Pool& get() {
    const std::lock_guard lock(guard);
    if (owner != getpid()) {
      static_cast<void>(pool.release());
      pool = std::make_unique<Pool>();
      owner = getpid();
    }
    return *pool;
  }
};

Pool& pool() {
  static PoolOfProcess current;
  return current.get();
}

thread_local bool t_inside = false;

}  // namespace

void parallel_for_impl(int threads, int64_t count, int64_t grain, void (*body)(void*, int, int64_t, int64_t),
                       void* context) {
  if (count <= 0) return;
  const int64_t pieces = (count + grain - 1) / grain;
  const int helpers = static_cast<int>(std::min<int64_t>(threads, pieces)) - 1;
  Loop loop{.body = body, .context = context, .count = count, .grain = grain};
  if (helpers <= 0 || t_inside) return loop.work(0);
  Pool& shared = pool();
  const std::unique_lock lock(shared.owner, std::try_to_lock);
  if (!lock.owns_lock()) return loop.work(0);
  t_inside = true;
  shared.run(loop, helpers);
  t_inside = false;
}

}  // namespace cpu
}  // namespace vlkv
