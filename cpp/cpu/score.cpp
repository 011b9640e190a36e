#include "vlkv/score.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/score_blocks.h"
#include "cpu/score_rows.h"
#include "cpu/thread_pool.h"

namespace vlkv {
namespace {

constexpr int64_t kParallelWork = int64_t{1} << 18;  // fewer multiply-adds run on one thread
// Up to this size of all threads' blocks, each thread takes whole heads. Larger blocks would not stay in the
// last-level cache of a usual processor: all threads then share one block, whose loops are long enough for a
// barrier at the end of each.
constexpr int64_t kOwnBlocksBytes = int64_t{8} << 20;

void clear(const ScoreParams& p) {
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.kv_heads && p.slots > 0; ++h) {
      std::fill_n(p.score + b * p.score_stride_b + h * p.score_stride_h, p.slots, 0.0F);
    }
    if (p.pairs) p.pairs[b] = 0;
    if (p.below) p.below[b] = 0;
  }
}

}  // namespace

void run_cpu(const ScoreParams& p) {
  validate(p);
  const std::vector<std::vector<cpu::Row>> prompts = cpu::read_rows(p);
  const cpu::ScorePlan plan(p, prompts);
  const int64_t heads = p.batch * p.kv_heads;
  const int64_t work = plan.tiles * cpu::kTileKeys * plan.block_vectors * plan.kernels.lanes * p.head_dim;
  const int threads = work * heads < kParallelWork ? 1 : cpu::resolve_threads(p.threads);

  // Each thread takes whole heads if there are enough of them; else all threads share each head's keys.
  const bool enough = heads >= 2 * threads || heads % threads == 0;
  const bool by_head = work < kParallelWork || (enough && plan.block_bytes() * threads <= kOwnBlocksBytes);
  const int scorers = by_head ? static_cast<int>(std::min<int64_t>(threads, std::max(heads, int64_t{1}))) : 1;
  std::vector<cpu::BlockScorer> scorer;
  scorer.reserve(static_cast<size_t>(scorers));
  for (int i = 0; i < scorers; ++i) scorer.emplace_back(plan, by_head ? 1 : threads);
  const auto counts = std::make_unique<cpu::HeadCounts[]>(static_cast<size_t>(heads));

  if (!p.accumulate) clear(p);
  cpu::parallel_for(scorers, heads, by_head ? 1 : heads, [&](int worker, int64_t begin, int64_t end) {
    scorer[static_cast<size_t>(worker)].run(begin, end, counts.get());
  });
  for (int64_t b = 0; b < p.batch; ++b) {
    int64_t pairs = p.accumulate && p.pairs ? p.pairs[b] : 0;
    int64_t below = p.accumulate && p.below ? p.below[b] : 0;
    for (int64_t head = b * p.kv_heads; head < (b + 1) * p.kv_heads; ++head) {
      pairs += counts[static_cast<size_t>(head)].pairs;
      below += counts[static_cast<size_t>(head)].under;
    }
    if (p.pairs) p.pairs[b] = pairs;
    if (p.below) p.below[b] = below;
    if (p.sparsity)
      p.sparsity[b] =
          pairs > 0 ? static_cast<float>(static_cast<double>(below) / static_cast<double>(pairs)) : 0.0F;
  }
}

}  // namespace vlkv
