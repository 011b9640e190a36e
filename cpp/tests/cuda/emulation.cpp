#include "emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <numeric>
#include <vector>

#include "cases.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

vlkv::emulation::Index threadIdx, blockIdx;

namespace vlkv::emulation {
namespace {

constexpr size_t kStack = size_t{128} << 10;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated block %u, thread %u: %s\n", blockIdx.x, threadIdx.x, what);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Barrier {
  int size = 0, arrived = 0;
  uint64_t generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStack);
  bool done = true;
  const Barrier* waits_at = nullptr;
  uint64_t generation = 0;  // of that barrier, when the fiber came
  const void* shown = nullptr;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Barrier> warp_barriers;
Barrier all_barrier;
ucontext_t scheduler;
unsigned current = 0;
bool progress = false;
const std::function<void()>* body = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;

// Tells AddressSanitizer of the switch, where it is there.
void switch_to(ucontext_t& from, ucontext_t& to, [[maybe_unused]] const void* stack,
               [[maybe_unused]] size_t size, [[maybe_unused]] bool entering) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack, size);
  swapcontext(&from, &to);
  __sanitizer_finish_switch_fiber(fake, entering ? nullptr : &scheduler_stack,
                                  entering ? nullptr : &scheduler_stack_size);
#else
  swapcontext(&from, &to);
#endif
}

void yield() {
  const unsigned self = current;
  switch_to(fibers[self]->context, scheduler, scheduler_stack, scheduler_stack_size, false);
}

void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  (*body)();
  Fiber& self = *fibers[current];
  if (!self.groups.empty() || !self.open.empty()) fail("ends with copies under way");
  self.done = true;
  progress = true;
  yield();
}

void meet(Barrier& barrier) {
  progress = true;
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  Fiber& self = *fibers[current];
  self.waits_at = &barrier, self.generation = generation;
  yield();  // the scheduler comes back when the generation is another
  self.waits_at = nullptr;
}

void run_block(int threads, test::Random& random) {
  all_barrier = {threads, 0, 0};
  warp_barriers.assign(static_cast<size_t>(threads / cuda::kWarp), {cuda::kWarp, 0, 0});
  std::vector<unsigned> order(static_cast<size_t>(threads));
  std::iota(order.begin(), order.end(), 0U);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = *fibers[static_cast<size_t>(i)];
    getcontext(&fiber.context);
    fiber.context.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStack};
    fiber.context.uc_link = nullptr;
    fiber.done = false;
    fiber.waits_at = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  // Some warps are slow, so that others run ahead of them where no barrier holds them.
  std::vector<uint32_t> slowness(static_cast<size_t>(threads / cuda::kWarp));
  for (uint32_t& of_warp : slowness) of_warp = random.pick<uint32_t>({0, 0, 8, 15});
  std::vector<bool> rests(slowness.size());
  uint32_t draw = static_cast<uint32_t>(random.integer(1, 1 << 30));
  for (int left = threads; left > 0;) {
    bool resting = false;
    for (size_t warp = 0; warp < rests.size(); ++warp) {
      draw ^= draw << 13, draw ^= draw >> 17, draw ^= draw << 5;
      rests[warp] = draw % 16 < slowness[warp];
      resting = resting || rests[warp];
    }
    progress = false;
    for (const unsigned thread : order) {
      Fiber& fiber = *fibers[thread];
      if (fiber.done || rests[thread / cuda::kWarp]) continue;
      if (fiber.waits_at != nullptr && fiber.waits_at->generation == fiber.generation) continue;
      current = threadIdx.x = thread;
      switch_to(scheduler, fiber.context, fiber.stack.get(), kStack, true);
      if (fiber.done) --left;
    }
    if (!progress && !resting && left > 0) fail("waits at a barrier that not all threads reach");
  }
  if (all_barrier.arrived != 0) fail("other threads ended before a barrier");
}

}  // namespace

void run(int64_t blocks, int threads, const std::function<void()>& kernel) {
  if (threads % cuda::kWarp != 0) fail("threads are not whole warps");
  while (fibers.size() < static_cast<size_t>(threads)) fibers.push_back(std::make_unique<Fiber>());
  static test::Random random(77);
  body = &kernel;
  for (int64_t block = 0; block < blocks; ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    run_block(threads, random);
  }
}

void block_barrier() { meet(all_barrier); }

void warp_barrier() { meet(warp_barriers[current / cuda::kWarp]); }

int lane() { return static_cast<int>(threadIdx.x) % cuda::kWarp; }

void exchange(const void* mine, const std::function<void(const void* const*)>& read) {
  const size_t first = current / cuda::kWarp * cuda::kWarp;
  fibers[current]->shown = mine;
  meet(warp_barriers[current / cuda::kWarp]);
  const void* shown[cuda::kWarp];
  for (size_t i = 0; i < cuda::kWarp; ++i) shown[i] = fibers[first + i]->shown;
  read(shown);
  meet(warp_barriers[current / cuda::kWarp]);
}

void copy_16(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    fail("copies 16 bytes from or to an address that is not a multiple of 16");
  }
  std::memset(to, 0xff, 16);  // NaN to whoever reads before the copy has come
  fibers[current]->open.push_back({to, from, valid});
}

void commit_copies() {
  Fiber& self = *fibers[current];
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void wait_copies(int pending) {
  Fiber& self = *fibers[current];
  for (; self.groups.size() > static_cast<size_t>(pending); self.groups.pop_front()) {
    for (const Copy& copy : self.groups.front()) {
      if (copy.valid)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
    }
  }
}

void load_matrices(uint32_t (&fragment)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a matrix's row is not aligned to 16 bytes");
  exchange(row, [&](const void* const* rows) {
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&fragment[i], static_cast<const char*>(rows[8 * i + lane() / 4]) + lane() % 4 * 4, 4);
    }
  });
}

void load_transposed(uint32_t (&fragment)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a matrix's row is not aligned to 16 bytes");
  exchange(row, [&](const void* const* rows) {
    // Lane l has, of each matrix, the elements of column l / 4 in rows 2 (l % 4) and the next.
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        const auto* const from = static_cast<const char*>(rows[8 * i + lane() % 4 * 2 + half]);
        std::memcpy(reinterpret_cast<char*>(&fragment[i]) + 2 * half, from + lane() / 4 * 2, 2);
      }
    }
  });
}

void multiply_add(float (&c)[4], const Fragments& mine, float (*convert)(uint16_t)) {
  exchange(&mine, [&](const void* const* lanes) {
    const auto of = [&](int owner) -> const Fragments& {
      return *static_cast<const Fragments*>(lanes[owner]);
    };
    const auto element = [&](uint32_t pair, int k) {
      return convert(static_cast<uint16_t>(k % 2 == 0 ? pair & 0xffffU : pair >> 16));
    };
    for (int i = 0; i < 4; ++i) {
      const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        const int quarter = k % 8 / 2, upper = k / 8;
        const float a = element(of(row % 8 * 4 + quarter).a[row / 8 + 2 * upper], k);
        c[i] += a * element(of(column * 4 + quarter).b[upper], k);
      }
    }
  });
}

float half_to_float(uint16_t bits) {
  static const std::vector<float> table = [] {
    std::vector<float> all(65536);
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = static_cast<float>(test::half_to_double(static_cast<uint16_t>(i)));
    }
    return all;
  }();
  return table[bits];
}

float bfloat16_to_float(uint16_t bits) { return static_cast<float>(test::bfloat16_to_double(bits)); }

uint16_t float_to_half(float x) {
  uint16_t bits;
  cpu::kPortableKernels.from_float(&x, DType::kFloat16, &bits, 1);
  return bits;
}

uint16_t float_to_bfloat16(float x) {
  uint16_t bits;
  cpu::kPortableKernels.from_float(&x, DType::kBFloat16, &bits, 1);
  return bits;
}

}  // namespace vlkv::emulation
