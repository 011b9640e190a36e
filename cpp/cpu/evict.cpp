#include "vlkv/evict.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "core/check.h"
#include "cpu/cache_copy.h"
#include "cpu/constants.h"
#include "cpu/select.h"
#include "cpu/thread_pool.h"

namespace vlkv {
namespace {

constexpr int64_t kPiece = VLKV_EVICT_PIECE;         // output slots per piece of work
constexpr int64_t kParallelWork = int64_t{1} << 17;  // fewer bytes are moved by one thread

template <class T>
std::unique_ptr<T[]> allocate(int64_t count) {
  return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(count));
}

void validate_lengths(const EvictParams& p) {
  const Check check("evict");
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = p.length[b], keep = p.keep[b], sinks = p.sinks[b], recent = p.recent[b];
    check.require(length >= 0 && length <= p.slots, "length[", b, "] is ", length, ", not in [0, ", p.slots,
                  "]");
    check.require(keep >= 0, "keep[", b, "] is ", keep, ", less than 0");
    check.require(sinks >= 0, "sinks[", b, "] is ", sinks, ", less than 0");
    check.require(recent >= 0, "recent[", b, "] is ", recent, ", less than 0");
    check.require(sinks <= keep && recent <= keep - sinks, "sinks[", b, "] + recent[", b, "] is ", sinks,
                  " + ", recent, ", more than keep ", keep);
    check.require(std::min(keep, length) <= p.capacity, "capacity is ", p.capacity, ", less than the ",
                  std::min(keep, length), " slots that prompt ", b, " keeps");
  }
}

int64_t kept(const EvictParams& p, int64_t b) { return std::min(p.keep[b], p.length[b]); }

const float* scores(const EvictParams& p, int64_t b, int64_t h) {
  return p.score + b * p.score_stride_b + h * p.score_stride_h;
}

int32_t* positions(const EvictParams& p, int64_t b, int64_t h) {
  return p.position_out + b * p.position_stride_b + h * p.position_stride_h;
}

// Writes the kept slots of one head, or of all heads of a prompt, and -1 after them.
void select(const EvictParams& p, int64_t b, int64_t h, uint32_t* scratch, float* sum) {
  const int64_t length = p.length[b], keep = kept(p, b), sinks = p.sinks[b], recent = p.recent[b];
  int32_t* slots = positions(p, b, h);
  if (keep == length) {
    std::iota(slots, slots + keep, 0);
  } else {
    const float* score = scores(p, b, h);
    if (!p.per_head && p.kv_heads > 1) {
      std::copy_n(score, length, sum);
      for (int64_t other = 1; other < p.kv_heads; ++other) {
        cpu::kernels().add(scores(p, b, other), sum, length);
      }
      score = sum;
    }
    std::iota(slots, slots + sinks, 0);
    cpu::select_highest(score, sinks, length - recent, keep - sinks - recent, scratch, slots + sinks);
    std::iota(slots + keep - recent, slots + keep, static_cast<int32_t>(length - recent));
  }
  if (p.zero_tail) std::fill(slots + keep, slots + p.capacity, -1);
  if (p.per_head) return;
  for (int64_t other = 1; other < p.kv_heads; ++other) {
    std::copy_n(slots, p.zero_tail ? p.capacity : keep, positions(p, b, other));
  }
}

cpu::HeadRows head_rows(const ConstView& from, const View& to, int64_t b, int64_t h, int64_t dim) {
  const int64_t size = size_of(from.dtype);
  return {.from = static_cast<const char*>(from.data) + (b * from.stride_b + h * from.stride_h) * size,
          .to = static_cast<char*>(to.data) + (b * to.stride_b + h * to.stride_h) * size,
          .from_stride = from.stride_s * size,
          .to_stride = to.stride_s * size,
          .dim = dim,
          .dtype = from.dtype};
}

// Fills output slots [begin, end) of one head of the keys or values.
void move(const EvictParams& p, const cpu::HeadRows& rows, int64_t b, int64_t h, int64_t begin, int64_t end,
          float* scratch) {
  const int64_t keep = kept(p, b), last = std::min(end, keep);
  if (begin < last) {
    if (p.merge == Merge::kNearestMean && keep < p.length[b]) {
      cpu::merge(rows, positions(p, b, h), begin, last, keep, p.length[b], cpu::kernels(), scratch);
    } else {
      cpu::gather(rows, positions(p, b, h), begin, last);
    }
  }
  if (p.zero_tail) cpu::clear(rows, std::max(begin, keep), std::max(end, keep));
}

}  // namespace

void run_cpu(const EvictParams& p) {
  validate(p);
  validate_lengths(p);
  if (p.batch == 0 || p.capacity == 0) return;
  const int64_t bytes = p.batch * p.kv_heads * p.capacity * row_bytes(p.key.dtype, p.head_dim);
  const int threads = bytes < kParallelWork ? 1 : cpu::resolve_threads(p.threads);
  const auto scratch = allocate<uint32_t>(threads * p.slots * 2);
  const auto sums = allocate<float>(p.per_head ? 0 : threads * p.slots);
  const auto lines = allocate<float>(threads * p.head_dim * 2);

  const int64_t selections = p.per_head ? p.kv_heads : 1;
  cpu::parallel_for(threads, p.batch * selections, 1, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      select(p, i / selections, i % selections, scratch.get() + worker * p.slots * 2,
             p.per_head ? nullptr : sums.get() + worker * p.slots);
    }
  });

  const int64_t pieces = (p.capacity + kPiece - 1) / kPiece;
  const auto move_piece = [&](int worker, int64_t i) {
    const int64_t piece = i / 2 % pieces, head = i / 2 / pieces;
    const int64_t b = head / p.kv_heads, h = head % p.kv_heads;
    const bool key = i % 2 == 0;
    const cpu::HeadRows rows =
        head_rows(key ? p.key : p.value, key ? p.key_out : p.value_out, b, h, p.head_dim);
    move(p, rows, b, h, piece * kPiece, std::min((piece + 1) * kPiece, p.capacity),
         lines.get() + worker * p.head_dim * 2);
  };
  cpu::parallel_for(threads, p.batch * p.kv_heads * pieces * 2, 1,
                    [&](int worker, int64_t begin, int64_t end) {
                      for (int64_t i = begin; i < end; ++i) move_piece(worker, i);
                    });
}

}  // namespace vlkv
