// The selection by several blocks, against the float64 oracle of the CPU's tests: with any number of blocks
// on small cases, and as run_cuda() chooses it on long ones.
#include "backend.h"
#include "cuda/launchers.h"
#include "cuda/workspace.h"
#include "evict_case.h"

namespace vlkv::test::evict {
namespace {

// The memory that several blocks share, which holds anything.
struct PartMemory {
  std::vector<float> shared_score;
  std::vector<uint32_t> bins, candidates;
  std::vector<cuda::EvictPart> facts;

  PartMemory(const Case& c, int64_t parts)
      : shared_score(static_cast<size_t>(c.batch * c.slots), kNan),
        bins(static_cast<size_t>(c.batch * c.heads * parts * cuda::kBins), ~uint32_t{0}),
        candidates(static_cast<size_t>(c.batch * c.heads * c.slots), ~uint32_t{0}),
        facts(static_cast<size_t>(c.batch * c.heads * parts), {~uint32_t{0}, -1, -1, ~uint32_t{0}}) {}
};

// Writes c.position by `parts` blocks for each selection.
void select_by(Case& c, int64_t parts) {
  PartMemory memory(c, parts);
  cuda::EvictArgs a{};
  a.batch = c.batch, a.kv_heads = c.heads, a.slots = c.slots, a.capacity = c.capacity;
  a.score = c.score.data(), a.score_stride_b = c.heads * c.slots, a.score_stride_h = c.slots;
  a.length = c.length.data(), a.keep = c.keep.data(), a.sinks = c.sinks.data(), a.recent = c.recent.data();
  a.position = c.position.data();
  a.position_stride_b = c.heads * c.capacity, a.position_stride_h = c.capacity;
  a.per_head = c.per_head, a.zero_tail = c.zero_tail;
  a.shared_score = memory.shared_score.data();
  a.parts = parts, a.part_bins = memory.bins.data(), a.part_facts = memory.facts.data();
  a.candidates = memory.candidates.data();
  std::fill(c.position.begin(), c.position.end(), -9);
  if (!a.per_head) cuda::launch_evict_sum_heads(a, nullptr);
  cuda::launch_evict_select(a, nullptr);
}

// Ties, NaN and infinities, few values, scores that begin alike, all of them equal, or numbers.
void draw_scores(Random& random, std::vector<float>& score) {
  const int64_t kind = random.integer(0, 5);
  for (float& x : score) {
    if (kind == 1) x = static_cast<float>(random.integer(0, 3));
    if (kind == 2) x = random.pick({kNan, kInf, -kInf, 0.0F, -0.0F, 1.0F});
    if (kind == 3)
      x = random.integer(0, 1) == 0 ? kNan : 1 + static_cast<float>(random.integer(0, 1000)) / 4000;
    if (kind == 4) x = 0.25F;
    if (kind == 5) x = std::bit_cast<float>(static_cast<uint32_t>(random.integer(0, 0xffffffffLL)));
  }
}

TEST(CudaEvictParts, AnyNumberOfBlocksMatchesTheDefinition) {
  Random random(130);
  for (int i = 0; i < rounds(30); ++i) {
    // Each block is a thousand fibers: few selections, and the most blocks once.
    const int64_t slots = random.integer(0, i % 3 ? 300 : 4000), batch = i == 0 ? 1 : random.integer(1, 2);
    Case c(random, DType::kFloat16, batch, i == 0 ? 1 : 3 - batch, slots, 1, slots + 2, false);
    c.per_head = random.integer(0, 1) == 1, c.zero_tail = random.integer(0, 3) != 0;
    draw_scores(random, c.score);
    const int64_t parts = i == 0 ? cuda::kMostParts : random.integer(2, 5);
    select_by(c, parts);
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t h = 0; h < c.heads; ++h) {
        std::vector<int64_t> kept = oracle_slots(c, b, h);
        kept.resize(static_cast<size_t>(c.capacity), c.zero_tail ? -1 : -9);
        const int32_t* const got = c.position.data() + (b * c.heads + h) * c.capacity;
        ASSERT_EQ(std::vector<int64_t>(got, got + c.capacity), kept)
            << "case " << i << ": " << parts << " blocks, prompt " << b << ", head " << h;
      }
    }
    const std::vector<int32_t> by_parts = c.position;
    select_by(c, 1);
    ASSERT_EQ(by_parts, c.position) << "case " << i;
  }
}

// Long caches, through run_cuda(): 65,536 slots and more, not a multiple of anything.
TEST(CudaEvictParts, LongCachesHaveTheBitsOfTheCpu) {
  Random random(131);
  constexpr int64_t kSlots = cuda::kPartedSlots + 77;
  struct Numbers {
    int64_t length, keep, sinks, recent;
  };
  const Numbers some[] = {
      {kSlots, 600, 4, 70}, {kSlots - 31, 0, 0, 0}, {500, kSlots, 9, 9}, {kSlots, 601, 0, 600}};
  for (int i = 0; i < (rounds(100) == 100 ? 6 : 2); ++i) {
    const bool per_head = i % 2 == 0;
    Case c(random, DType::kFloat16, 1, 2, kSlots, 2, 640, false);
    const Numbers n = i < 2 ? some[0] : some[i - 2];
    c.length = {n.length}, c.keep = {n.keep}, c.sinks = {n.sinks}, c.recent = {n.recent};
    c.per_head = per_head, c.merge = i % 3 == 1 ? Merge::kNearestMean : Merge::kNone;
    draw_scores(random, c.score);
    EXPECT_GE(cuda::layout(c.params()).parts, cuda::kLeastParts);
    run_emulated(c.params());
    const std::vector<unsigned char> key = c.key_out.bytes(), value = c.value_out.bytes();
    const std::vector<int32_t> position = c.position;
    run_cpu(c.params());
    EXPECT_EQ(position, c.position) << "case " << i;
    EXPECT_EQ(key, c.key_out.bytes()) << "case " << i;
    EXPECT_EQ(value, c.value_out.bytes()) << "case " << i;
  }
}

EvictParams sized(int64_t batch, int64_t heads, int64_t slots, bool per_head = true) {
  EvictParams p;
  p.batch = batch, p.kv_heads = heads, p.slots = slots, p.per_head = per_head;
  return p;
}

TEST(CudaEvictParts, LongCachesOfFewSelectionsHaveSeveralBlocks) {
  const auto parts = [](const EvictParams& p) { return cuda::layout(p).parts; };
  EXPECT_EQ(parts(sized(1, 8, cuda::kPartedSlots - 1)), 1);
  EXPECT_EQ(parts(sized(1, 8, cuda::kPartedSlots)), 8);
  EXPECT_EQ(parts(sized(1, 8, 131072)), 16);
  EXPECT_EQ(parts(sized(1, 32, 131072)), 4);
  EXPECT_EQ(parts(sized(1, 33, 131072)), 1);
  EXPECT_EQ(parts(sized(16, 32, 131072)), 1);
  EXPECT_EQ(parts(sized(1, 32, 1 << 20, false)), 32);
  EXPECT_EQ(cuda_workspace_size(sized(1, 8, cuda::kPartedSlots - 1)), 0U);
  // 8 candidates a slot, and at most 128 histograms of 2,048 numbers
  EXPECT_LT(cuda_workspace_size(sized(1, 8, 131072)), 8U * 131072 * 4 + (1U << 20) + 4096);
}

TEST(CudaEvictParts, WorkspaceNeverShrinksAsSizesGrowAndHoldsAll) {
  Random random(132);
  for (int i = 0; i < 5000; ++i) {
    const bool per_head = random.integer(0, 1) == 1;
    const EvictParams p =
        sized(random.integer(0, 40), random.integer(0, 40), random.integer(0, 400000), per_head);
    EvictParams larger = p;
    larger.batch += random.integer(0, 2), larger.kv_heads += random.integer(0, 2);
    larger.slots += random.integer(0, 100000);
    ASSERT_LE(cuda_workspace_size(p), cuda_workspace_size(larger));
    const cuda::EvictLayout l = cuda::layout(p);
    if (l.parts == 1) continue;
    const auto selections = static_cast<size_t>(p.batch * (per_head ? p.kv_heads : 1));
    const auto blocks = selections * static_cast<size_t>(l.parts);
    ASSERT_LE(l.parts, cuda::kMostParts);
    ASSERT_LE(l.shared_score + (per_head ? 0 : static_cast<size_t>(p.batch * p.slots) * 4), l.part_bins);
    ASSERT_LE(l.part_bins + blocks * cuda::kBins * 4, l.part_facts);
    ASSERT_LE(l.part_facts + blocks * sizeof(cuda::EvictPart), l.candidates);
    ASSERT_LE(l.candidates + selections * static_cast<size_t>(p.slots) * 4, l.size);
  }
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_GT(cuda_workspace_size(sized(kMost, kMost, kMost)), size_t{1} << 62);
}

}  // namespace
}  // namespace vlkv::test::evict
