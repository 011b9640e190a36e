#include "vlkv/read_words.h"

#include <algorithm>
#include <atomic>

#include "core/check.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace vlkv {

uint32_t read_words(const uint32_t* words, int64_t count, int threads) {
  const Check check("read_words");
  check.require(count >= 0, "count is ", count, ", less than 0");
  check.require(words != nullptr || count == 0, "words is null");
  check.threads(threads);
  constexpr int64_t kPiece = int64_t{1}
                             << 18;  // 1 MiB: long enough for prefetchers, and threads end together
  const cpu::Kernels& kernels = cpu::kernels();
  std::atomic<uint32_t> sum{0};
  cpu::parallel_for(cpu::resolve_threads(threads), (count + kPiece - 1) / kPiece, 1,
                    [&](int, int64_t begin, int64_t end) {
                      const int64_t first = begin * kPiece;
                      sum += kernels.sum_words(words + first, std::min(count, end * kPiece) - first);
                    });
  return sum;
}

}  // namespace vlkv
