// What the opcodes do that threads execute together.
#include "cuda/emulation.h"
#include "cuda/ptx/steps.h"

namespace vlkv::ptx {
namespace {

constexpr uint32_t kEveryLane = 0xffffffffU;

void every_lane(Thread& t, const Operand& mask) {
  if (get<uint32_t>(t, mask) != kEveryLane) t.fail("is for some of the lanes");
}
void block_barrier(Thread& t, const Instruction& i) {
  if (get<uint32_t>(t, i.operands[0]) != 0) t.fail("a barrier of another number");
  emulation::block_barrier();
}
void warp_barrier(Thread& t, const Instruction& i) {
  every_lane(t, i.operands[0]);
  emulation::warp_barrier();
}

// d|p = value of another lane: operands d, p, a, b, c, mask.
template <class From>
void shuffle(Thread& t, const Instruction& i) {
  every_lane(t, i.operands[5]);
  const auto mine = get<uint32_t>(t, i.operands[2]);
  const int by = static_cast<int>(get<uint32_t>(t, i.operands[3])), from = From{}(emulation::lane(), by);
  const bool inside = from >= 0 && from < cuda::kWarp;
  set<uint32_t>(t, i.operands[0],
                emulation::of_lanes(mine, [&](const uint32_t* all) { return inside ? all[from] : mine; }));
  set<uint32_t>(t, i.operands[1], inside ? 1 : 0);
}
struct Across {
  int operator()(int lane, int by) const { return lane ^ by; }
};
struct Below {
  int operator()(int lane, int by) const { return lane - by; }
};

uint32_t ballot(Thread& t, const Operand& predicate) {
  return emulation::of_lanes(get<uint32_t>(t, predicate) != 0, [](const bool* all) {
    uint32_t lanes = 0;
    for (int lane = 0; lane < cuda::kWarp; ++lane) lanes |= uint32_t{all[lane]} << lane;
    return lanes;
  });
}
void vote_all(Thread& t, const Instruction& i) {
  every_lane(t, i.operands[2]);
  set<uint32_t>(t, i.operands[0], ballot(t, i.operands[1]) == kEveryLane ? 1 : 0);
}
void vote_ballot(Thread& t, const Instruction& i) {
  every_lane(t, i.operands[2]);
  set<uint32_t>(t, i.operands[0], ballot(t, i.operands[1]));
}
template <class F>
void reduce(Thread& t, const Instruction& i) {
  every_lane(t, i.operands[2]);
  set<int32_t>(t, i.operands[0], emulation::reduced(get<int32_t>(t, i.operands[1]), F{}));
}

void atomic_add(Thread& t, const Instruction& i) {
  char* const at = place<Space::kShared>(t, address(t, i.operands[1]), 4);
  uint32_t before;
  std::memcpy(&before, at, 4);
  const uint32_t after = before + get<uint32_t>(t, i.operands[2]);
  std::memcpy(at, &after, 4);
  set<uint32_t>(t, i.operands[0], before);
}

template <float (*kConvert)(uint16_t)>
void multiply_matrices(Thread& t, const Instruction& i) {
  emulation::Fragments mine;
  float sums[4];
  for (size_t e = 0; e < 4; ++e) {
    mine.a[e] = get<uint32_t>(t, i.operands[4 + e]);
    sums[e] = get<float>(t, i.operands[10 + e]);
  }
  for (size_t e = 0; e < 2; ++e) mine.b[e] = get<uint32_t>(t, i.operands[8 + e]);
  emulation::multiply_add(sums, mine, kConvert);
  for (size_t e = 0; e < 4; ++e) set<float>(t, i.operands[e], sums[e]);
}
template <void (*kLoad)(uint32_t (&)[4], const void*)>
void load_matrices(Thread& t, const Instruction& i) {
  uint32_t fragment[4];
  kLoad(fragment, place<Space::kShared>(t, address(t, i.operands[4]), 16));
  for (size_t e = 0; e < 4; ++e) set<uint32_t>(t, i.operands[e], fragment[e]);
}

// [shared], [global], 16, bytes that are there
void copy_async(Thread& t, const Instruction& i) {
  const auto bytes = get<uint32_t>(t, i.operands[3]);
  if (get<uint32_t>(t, i.operands[2]) != 16 || (bytes != 0 && bytes != 16))
    t.fail("copies another number of bytes");
  char* const to = place<Space::kShared>(t, address(t, i.operands[0]), 16);
  emulation::copy_16(to, place<Space::kGlobal>(t, address(t, i.operands[1]), 16), bytes == 16);
}
void commit_copies(Thread&, const Instruction&) { emulation::commit_copies(); }
void wait_copies(Thread& t, const Instruction& i) { emulation::wait_copies(get<int32_t>(t, i.operands[0])); }

}  // namespace

void add_steps_together(Table& all) {
  all["bar.sync"] = block_barrier, all["bar.warp.sync"] = warp_barrier;
  all["shfl.sync.bfly.b32"] = shuffle<Across>, all["shfl.sync.up.b32"] = shuffle<Below>;
  all["vote.sync.all.pred"] = vote_all, all["vote.sync.ballot.b32"] = vote_ballot;
  all["redux.sync.add.s32"] = reduce<Add<int32_t>>, all["redux.sync.min.s32"] = reduce<Smaller<int32_t>>;
  all["redux.sync.max.s32"] = reduce<Larger<int32_t>>;
  all["atom.shared.add.u32"] = atomic_add;
  all["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = multiply_matrices<emulation::half_to_float>;
  all["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] =
      multiply_matrices<emulation::bfloat16_to_float>;
  all["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = load_matrices<emulation::load_matrices>;
  all["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] = load_matrices<emulation::load_transposed>;
  all["cp.async.cg.shared.global"] = copy_async;
  all["cp.async.commit_group"] = commit_copies, all["cp.async.wait_group"] = wait_copies;
}

}  // namespace vlkv::ptx
