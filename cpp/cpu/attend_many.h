// Attend's calls with several rows per prompt.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "vlkv/attend.h"

namespace vlkv::cpu {

// log2(e) times the scale.
double log2_factor(const AttendParams& p);

// The slot of prompt b's first new token.
inline int64_t first_slot(const AttendParams& p, int64_t b) { return p.first ? p.first[b] : p.last[b]; }

// The memory of a KV head's slot; head is b * Hkv + h.
inline const char* row_of(const AttendParams& p, const void* cache, int64_t head, int64_t slot) {
  return static_cast<const char*>(cache) + (head * p.slots + slot) * row_bytes(p.cache, p.head_dim);
}

// Blocks of a call's rows, which a thread takes at a time: a block's queries share each tile of a KV head's
// cache. The call's rows are in the cache already.
class AttendMany {
 public:
  explicit AttendMany(const AttendParams& params);

  // Threads that can work at a time, each with memory of its own.
  int64_t workers() const { return workers_; }

  // Takes blocks until none is left. `worker` is in [0, workers()); different ones may run at a time.
  void run(int64_t worker);

 private:
  struct Memory {
    float *query, *state, *weight, *tile;
    int32_t* seen;
  };

  Memory memory_of(int64_t worker) const;
  AttendQueries queries_of(const Memory& memory, int64_t first, int64_t count) const;
  void run_block(const Memory& memory, int64_t head, int64_t begin) const;
  int64_t offset(int64_t i) const;
  void pack(const Memory& memory, const float* from, int64_t first, int64_t count) const;
  float element(const AttendQueries& queries, int64_t width, int64_t lane, int64_t d) const;
  void attend_to_own(const Memory& memory, const float* key, const float* value, int64_t count) const;
  void unpack(const Memory& memory, float* to, int64_t first, int64_t count) const;
  AttendKeys tile_of(const Memory& memory, int64_t head, int64_t first, int64_t slots) const;
  const float* wide(const char* from, int64_t rows, float* to) const;
  const uint16_t* narrow(const char* from, int64_t rows, float* line, uint16_t* to) const;

  const AttendParams& p_;
  const Kernels& kernels_;
  const HalfAttend* half_;  // null if products are in float32
  double factor_;           // of the logits, in pack()
  // Query heads of a KV head; rows of a block; blocks of a KV head; threads.
  int64_t group_, block_, blocks_, workers_;
  int64_t width_, most_;  // queries of AttendQueries, and of a block in whole ones
  int64_t own_;           // 1 if a row's own key and value are read as given, else 0
  int64_t floats_ = 0;    // of a worker's memory
  Array<float> memory_;
  Array<int32_t> seen_;
  std::atomic<int64_t> next_{0};
};

}  // namespace vlkv::cpu
