#include "vlkv/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"

namespace vlkv {
namespace {

constexpr int64_t kPartSlots = 1024;                 // slots that a thread takes at a time
constexpr int64_t kParallelWork = int64_t{1} << 17;  // fewer multiply-adds run on one thread
constexpr double kLog2E = 1.4426950408889634;

int64_t parts(int64_t slots) { return (slots + kPartSlots - 1) / kPartSlots; }

// One call: `most` parts for each KV head of each prompt; shorter prompts leave some of them empty.
struct Call {
  const AttendParams& p;
  const cpu::Kernels& kernels;
  int64_t group, state_size, most;
  cpu::Array<float> query;   // [B, Hq, D], times scale and log2(e)
  cpu::Array<float> states;  // [B, Hkv, most][group][2 + D]: maximum, sum of weights, weighted sum of values

  float* state(int64_t head, int64_t part) const { return states.get() + (head * most + part) * state_size; }

  void run_part(int64_t i) const {
    const int64_t head = i / most, begin = i % most * kPartSlots, slots = p.last[head / p.kv_heads] + 1;
    if (begin >= slots) return;
    const int64_t at = (head * p.slots + begin) * p.head_dim;
    const int64_t keys = std::min(kPartSlots, slots - begin);
    kernels.attend({query.get() + head * group * p.head_dim, p.key_cache + at, p.value_cache + at,
                    static_cast<int>(group), static_cast<int>(keys), static_cast<int>(p.head_dim),
                    state(head, i % most)});
  }

  // Combines the parts of one KV head.
  void combine(int64_t head) const {
    const int64_t count = parts(p.last[head / p.kv_heads] + 1);
    for (int64_t h = 0; h < group; ++h) {
      float maximum = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int64_t part = 0; part < count; ++part) {
        maximum = std::max(maximum, state(head, part)[h * (2 + p.head_dim)]);
      }
      const float origin = std::isinf(maximum) && maximum < 0 ? 0.0F : maximum;
      float* result = p.result + (head * group + h) * p.head_dim;
      std::fill_n(result, p.head_dim, 0.0F);
      for (int64_t part = 0; part < count; ++part) {
        const float* own = state(head, part) + h * (2 + p.head_dim);
        const float factor = std::exp2(own[0] - origin);
        sum += own[1] * factor;
        for (int64_t d = 0; d < p.head_dim; ++d) result[d] += own[2 + d] * factor;
      }
      for (int64_t d = 0; d < p.head_dim; ++d) result[d] /= sum;
    }
  }
};

// Checks all prompts, and returns the slots of the longest.
int64_t longest(const AttendParams& p) {
  const Check check("attend");
  int64_t most = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    check.require(p.last[b] >= 0 && p.last[b] < p.slots, "prompt ", b, "'s new token takes slot ", p.last[b],
                  ", not in [0, ", p.slots - 1, "]");
    most = std::max<int64_t>(most, p.last[b] + 1);
  }
  return most;
}

void append(const AttendParams& p) {
  for (int64_t head = 0; head < p.batch * p.kv_heads; ++head) {
    const int64_t at = (head * p.slots + p.last[head / p.kv_heads]) * p.head_dim;
    std::copy_n(p.key + head * p.head_dim, p.head_dim, p.key_cache + at);
    std::copy_n(p.value + head * p.head_dim, p.head_dim, p.value_cache + at);
  }
}

}  // namespace

void run_cpu(const AttendParams& p, const Loop& loop) {
  validate(p);
  const int64_t slots = longest(p), heads = p.batch * p.kv_heads, group = p.query_heads / p.kv_heads;
  if (heads == 0) return;
  const int64_t most = parts(slots), state_size = group * (2 + p.head_dim),
                numbers = heads * group * p.head_dim;
  const Call call{p,
                  cpu::kernels(),
                  group,
                  state_size,
                  most,
                  cpu::allocate<float>(numbers),
                  cpu::allocate<float>(heads * most * state_size)};
  const double scale = p.scale != 0.0F ? p.scale : 1.0 / std::sqrt(static_cast<double>(p.head_dim));
  for (int64_t i = 0; i < numbers; ++i)
    call.query[static_cast<size_t>(i)] = static_cast<float>(scale * kLog2E * p.query[i]);
  append(p);

  const int64_t items = heads * most;
  if (slots * p.batch * p.query_heads * p.head_dim < kParallelWork) {
    for (int64_t i = 0; i < items; ++i) call.run_part(i);
  } else if (loop.run != nullptr) {
    loop.run(
        loop.owner, items, [](void* data, int64_t i) { static_cast<const Call*>(data)->run_part(i); },
        const_cast<void*>(static_cast<const void*>(&call)));
  } else {
    cpu::parallel_for(cpu::resolve_threads(p.threads), items, 1, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) call.run_part(i);
    });
  }
  for (int64_t head = 0; head < heads; ++head) call.combine(head);
}

}  // namespace vlkv
