#include "vlkv/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "cpu/attend_many.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/recall.h"
#include "cpu/rotate.h"
#include "cpu/thread_pool.h"

namespace vlkv {
namespace {

constexpr int64_t kPartSlots = VLKV_ATTEND_PART_SLOTS;  // slots that a thread takes at a time
constexpr int64_t kParallelWork = int64_t{1} << 17;     // fewer multiply-adds run on one thread

int64_t parts(int64_t slots) { return (slots + kPartSlots - 1) / kPartSlots; }

// Runs body(i) for each i of [0, count) on the caller's threads or on this library's.
template <class Body>
void spread(const AttendParams& p, const Loop& loop, int64_t count, bool alone, const Body& body) {
  if (alone) {
    for (int64_t i = 0; i < count; ++i) body(i);
  } else if (loop.run != nullptr) {
    loop.run(
        loop.owner, count, [](void* data, int64_t i) { (*static_cast<const Body*>(data))(i); },
        const_cast<void*>(static_cast<const void*>(&body)));
  } else {
    cpu::parallel_for(cpu::resolve_threads(p.threads), count, 1, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }
}

// A call with one row: up to `most` parts for each KV head of each prompt. Of a cache that rounds, the first
// is the new token's own row as it was given, and the others are the slots before it.
struct OneRow {
  const AttendParams& p;
  const cpu::Kernels& kernels;
  int64_t own;  // 1 if the first part is the own row, else 0
  int64_t group, state_size, most;
  cpu::Array<float> query;   // [B, Hq, D], times scale and log2(e)
  cpu::Array<float> states;  // [B, Hkv, most][group][2 + D]: maximum, sum of weights, weighted sum of values
  cpu::Array<float> added;   // [B, Hkv][2][D], each own key and value, rotated; null if the cache's are not
  int64_t pages = 0;         // the most pages of evicted tokens that a KV head reads
  cpu::Array<float> page_states{};  // [B, Hkv, pages][group][2 + D], over rotated values

  float* state(int64_t head, int64_t part) const { return states.get() + (head * most + part) * state_size; }

  // Slots of a KV head that are read from the cache, and its parts.
  int64_t stored(int64_t head) const { return p.last[head / p.kv_heads] + 1 - own; }
  int64_t count(int64_t head) const { return own + parts(stored(head)); }

  void run_part(int64_t i) const {
    const int64_t head = i / most, begin = (i % most - own) * kPartSlots;
    if (i % most >= count(head)) return;
    cpu::AttendPart part;
    part.query = query.get() + head * group * p.head_dim, part.heads = static_cast<int>(group);
    part.head_dim = static_cast<int>(p.head_dim), part.state = state(head, i % most);
    if (begin < 0) {
      const bool rotated = added != nullptr;
      part.key = rotated ? added.get() + head * 2 * p.head_dim : p.key + head * p.head_dim;
      part.value = rotated ? added.get() + (head * 2 + 1) * p.head_dim : p.value + head * p.head_dim;
      part.type = DType::kFloat32, part.keys = 1;
    } else {
      part.key = cpu::row_of(p, p.key_cache, head, begin);
      part.value = cpu::row_of(p, p.value_cache, head, begin);
      part.type = p.cache, part.keys = static_cast<int>(std::min(kPartSlots, stored(head) - begin));
    }
    kernels.attend(part);
  }

  const Recall* recall_of(int64_t head) const { return pages == 0 ? nullptr : p.recall[head / p.kv_heads]; }

  float* page_state(int64_t head) const { return page_states.get() + head * pages * state_size; }

  // The largest logit of a query over the cache.
  float largest(int64_t head, int64_t h) const {
    float maximum = -std::numeric_limits<float>::infinity();
    for (int64_t part = 0; part < count(head); ++part) {
      maximum = std::max(maximum, state(head, part)[h * (2 + p.head_dim)]);
    }
    return maximum;
  }

  // Attends to pages of evicted tokens, once the cache's parts are done.
  void run_pages(int64_t head) const {
    const Recall* recall = recall_of(head);
    if (recall == nullptr || recall->layer(p.layer).tokens == 0) return;
    const int64_t count = group * p.head_dim;
    const auto memory = cpu::allocate<float>(count + group);
    const float* other = query.get() + head * count;  // rotated if the cache is, else to be rotated
    std::copy_n(other, count, memory.get());
    cpu::rotate(memory.get(), group, p.head_dim);
    float* most_of = memory.get() + count;
    for (int64_t h = 0; h < group; ++h) most_of[h] = largest(head, h);
    const bool rotated = p.cache == DType::kInt8;
    const float *plain = rotated ? memory.get() : other, *turned = rotated ? other : memory.get();
    cpu::attend_pages({recall, p.layer, head % p.kv_heads, group, plain, turned, most_of}, kernels,
                      page_state(head));
  }

  // Adds the states of one query of a KV head to `result`, and returns the sum of their weights.
  float add_states(const float* states_of, int64_t number, int64_t h, float origin, float* result) const {
    float sum = 0;
    for (int64_t part = 0; part < number; ++part) {
      const float* from = states_of + part * state_size + h * (2 + p.head_dim);
      const float factor = std::exp2(from[0] - origin);
      sum += from[1] * factor;
      for (int64_t d = 0; d < p.head_dim; ++d) result[d] += from[2 + d] * factor;
    }
    return sum;
  }

  // Combines the parts of one KV head.
  void combine(int64_t head) const {
    const Recall* recall = recall_of(head);
    const int64_t chosen = recall == nullptr ? 0 : cpu::pages_read(*recall, p.layer);
    const auto recalled = chosen > 0 ? cpu::allocate<float>(p.head_dim) : nullptr;
    for (int64_t h = 0; h < group; ++h) {
      float maximum = largest(head, h);
      for (int64_t page = 0; page < chosen; ++page) {
        maximum = std::max(maximum, page_state(head)[page * state_size + h * (2 + p.head_dim)]);
      }
      const float origin = std::isinf(maximum) && maximum < 0 ? 0.0F : maximum;
      float* result = p.result + (head * group + h) * p.head_dim;
      std::fill_n(result, p.head_dim, 0.0F);
      float sum = add_states(state(head, 0), count(head), h, origin, result);
      if (chosen > 0) {
        std::fill_n(recalled.get(), p.head_dim, 0.0F);
        sum += add_states(page_state(head), chosen, h, origin, recalled.get());
        if (p.cache != DType::kInt8) cpu::rotate(recalled.get(), 1, p.head_dim);
        for (int64_t d = 0; d < p.head_dim; ++d) result[d] += recalled[static_cast<size_t>(d)];
      }
      for (int64_t d = 0; d < p.head_dim; ++d) result[d] /= sum;
    }
    if (p.cache == DType::kInt8) cpu::rotate(p.result + head * group * p.head_dim, group, p.head_dim);
  }
};

// Checks all prompts, and returns the slots of the longest.
int64_t longest(const AttendParams& p) {
  const Check check("attend");
  int64_t most = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t last = p.last[b], first = cpu::first_slot(p, b);
    check.require(last >= 0 && last < p.slots, "prompt ", b, "'s new token takes slot ", last,
                  ", not in [0, ", p.slots - 1, "]");
    check.require(first >= 0 && first <= last && last - first < p.rows, "prompt ", b,
                  "'s new tokens take slots ", first, " to ", last, ", not 1 to ", p.rows, " slots from 0");
    most = std::max(most, last + 1);
  }
  return most;
}

// Stores the new tokens. Returns the rows that an int8 cache rounds, each prompt's last token's, rotated:
// [B, Hkv][2][D]; null for other caches.
cpu::Array<float> append(const AttendParams& p, const cpu::Kernels& kernels) {
  const bool rotated = p.cache == DType::kInt8;
  auto rows = rotated ? cpu::allocate<float>(p.batch * p.kv_heads * 2 * p.head_dim) : nullptr;
  const auto write = [&](const float* from, void* cache, int64_t head, int64_t kind, int64_t slot) {
    if (rotated) {
      float* row = rows.get() + (head * 2 + kind) * p.head_dim;
      std::copy_n(from, p.head_dim, row);
      cpu::rotate(row, 1, p.head_dim);
      from = row;
    }
    kernels.from_float(from, p.cache, const_cast<char*>(cpu::row_of(p, cache, head, slot)), p.head_dim);
  };
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t first = cpu::first_slot(p, b);
    for (int64_t slot = first; slot <= p.last[b]; ++slot) {
      for (int64_t h = 0; h < p.kv_heads; ++h) {
        const int64_t from = ((b * p.rows + slot - first) * p.kv_heads + h) * p.head_dim;
        const int64_t head = b * p.kv_heads + h;
        write(p.key + from, p.key_cache, head, 0, slot);
        write(p.value + from, p.value_cache, head, 1, slot);
      }
    }
  }
  return rows;
}

void run_one(const AttendParams& p, const Loop& loop, int64_t slots) {
  const int64_t heads = p.batch * p.kv_heads, group = p.query_heads / p.kv_heads;
  const int64_t own = p.cache == DType::kFloat32 ? 0 : 1, most = own + parts(slots - own),
                state_size = group * (2 + p.head_dim), numbers = heads * group * p.head_dim;
  OneRow call{p,
              cpu::kernels(),
              own,
              group,
              state_size,
              most,
              cpu::allocate<float>(numbers),
              cpu::allocate<float>(heads * most * state_size),
              append(p, cpu::kernels())};
  const double factor = cpu::log2_factor(p);
  for (int64_t i = 0; i < numbers; ++i)
    call.query[static_cast<size_t>(i)] = static_cast<float>(factor * p.query[i]);
  if (p.cache == DType::kInt8) cpu::rotate(call.query.get(), heads * group, p.head_dim);
  const bool alone = slots * p.batch * p.query_heads * p.head_dim < kParallelWork;
  spread(p, loop, heads * most, alone, [&](int64_t i) { call.run_part(i); });
  for (int64_t b = 0; p.recall != nullptr && b < p.batch; ++b) {
    if (p.recall[b] != nullptr) call.pages = std::max(call.pages, cpu::pages_read(*p.recall[b], p.layer));
  }
  if (call.pages > 0) {
    call.page_states = cpu::allocate<float>(heads * call.pages * state_size);
    spread(p, loop, heads, alone, [&](int64_t head) { call.run_pages(head); });
  }
  for (int64_t head = 0; head < heads; ++head) call.combine(head);
}

void run_many(const AttendParams& p, const Loop& loop, int64_t slots) {
  cpu::AttendMany call(p);
  static_cast<void>(append(p, cpu::kernels()));
  const bool alone = p.rows * slots * p.batch * p.query_heads * p.head_dim < kParallelWork;
  spread(p, loop, call.workers(), alone, [&](int64_t worker) { call.run(worker); });
}

}  // namespace

void run_cpu(const AttendParams& p, const Loop& loop) {
  validate(p);
  if (p.batch == 0 || p.rows == 0) return;
  const int64_t slots = longest(p);
  if (p.rows == 1) {
    run_one(p, loop, slots);
  } else {
    run_many(p, loop, slots);
  }
}

}  // namespace vlkv
