// MoveSlots' kernel on the host, against plain copies.
#include <cstring>

#include "backend.h"
#include "cases.h"
#include "vlkv/c_api.h"

namespace vlkv::test::move {
namespace {

struct Case {
  int64_t layers, batch, heads, bytes;
  std::vector<int64_t> capacity, slots, last;
  std::vector<std::vector<char>> memory;
  std::vector<void*> arrays;

  // `shift` bytes before each array: what lies on 16 bytes no more is moved by 2.
  Case(Random& random, int64_t l, int64_t b, int64_t h, int64_t n, size_t shift)
      : layers(l), batch(b), heads(h), bytes(n) {
    for (int64_t layer = 0; layer < l; ++layer) capacity.push_back(random.integer(1, 9));
    for (int64_t layer = 0; layer < l; ++layer) {
      const int64_t most = capacity[static_cast<size_t>(layer)];
      for (int64_t row = 0; row < b; ++row) last.push_back(random.integer(-1, most));
      for (int64_t head = 0; head < b * h; ++head) slots.push_back(random.integer(-2, most + 1));
    }
    for (int64_t array = 0; array < 2 * l; ++array) {
      const int64_t most = capacity[static_cast<size_t>(array % l)];
      memory.emplace_back(static_cast<size_t>(b * h * most * n) + shift + 16);
      for (char& byte : memory.back()) byte = static_cast<char>(random.integer(0, 255));
      const auto start = reinterpret_cast<uintptr_t>(memory.back().data());
      arrays.push_back(memory.back().data() + (16 - start % 16) % 16 + shift);
    }
  }

  MoveSlotsParams params() const {
    MoveSlotsParams p;
    p.layers = layers, p.batch = batch, p.kv_heads = heads, p.slot_bytes = bytes;
    p.arrays = arrays.data(), p.capacity = capacity.data(), p.slots = slots.data(), p.last = last.data();
    return p;
  }

  // The same by its definition, on a copy of the bytes.
  std::vector<std::vector<char>> wanted() const {
    auto all = memory;
    for (int64_t array = 0; array < 2 * layers; ++array) {
      const auto layer = static_cast<size_t>(array % layers);
      const auto& source = memory[static_cast<size_t>(array)];
      const int64_t begin = static_cast<char*>(arrays[static_cast<size_t>(array)]) - source.data();
      for (int64_t head = 0; head < batch * heads; ++head) {
        const int64_t slot = slots[layer * static_cast<size_t>(batch * heads) + static_cast<size_t>(head)];
        const int64_t from = last[layer * static_cast<size_t>(batch) + static_cast<size_t>(head / heads)];
        const int64_t most = capacity[layer];
        if (slot < 0 || slot >= most || from < 0 || from >= most) continue;
        const int64_t row = begin + head * most * bytes;
        std::memcpy(all[static_cast<size_t>(array)].data() + row + slot * bytes,
                    source.data() + row + from * bytes, static_cast<size_t>(bytes));
      }
    }
    return all;
  }
};

TEST(CudaMoveSlots, MovesTheNewestSlotOfEachHead) {
  Random random(150);
  for (int round = 0; round < rounds(60); ++round) {
    const int64_t bytes[] = {2, 10, 16, 64, 256, 1024};
    const size_t shift = round % 3 == 0 ? 2 : 0;
    Case c(random, random.integer(1, 4), random.integer(0, 3), random.integer(1, 5),
           bytes[random.integer(0, 5)], shift);
    const auto wanted = c.wanted();
    run_cuda(c.params(), nullptr);
    ASSERT_EQ(c.memory, wanted) << round;
  }
}

TEST(CudaMoveSlots, RefusesWhatItCannotTake) {
  Random random(151);
  const Case c(random, 2, 2, 2, 64, 0);
  const auto refused = [&](auto change) {
    MoveSlotsParams p = c.params();
    change(p);
    EXPECT_THROW(run_cuda(p, nullptr), InvalidArgument);
  };
  refused([](auto& p) { p.layers = 0; });
  refused([](auto& p) { p.batch = -1; });
  refused([](auto& p) { p.kv_heads = 0; });
  refused([](auto& p) { p.slot_bytes = 3; });
  refused([](auto& p) { p.layers = p.kv_heads = 65536; });  // too many heads for 32 bits
  refused([](auto& p) { p.arrays = nullptr; });
  refused([](auto& p) { p.capacity = nullptr; });
  refused([](auto& p) { p.slots = nullptr; });
  refused([](auto& p) { p.last = nullptr; });
}

#ifndef VLKV_PTX
TEST(CudaMoveSlots, HasACEntryPoint) {
  Random random(152);
  Case c(random, 3, 2, 4, 32, 0);
  const auto wanted = c.wanted();
  vlkv_move_slots_params given{
      3, 2, 4, 32, c.arrays.data(), c.capacity.data(), c.slots.data(), c.last.data()};
  char text[200];
  ASSERT_EQ(vlkv_move_slots_cuda(&given, nullptr, text, sizeof text), VLKV_OK) << text;
  EXPECT_EQ(c.memory, wanted);
  given.slot_bytes = 5;
  EXPECT_EQ(vlkv_move_slots_cuda(&given, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(text), "[move_slots] slot_bytes 5 is odd");
  EXPECT_EQ(vlkv_move_slots_cuda(nullptr, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
}
#endif

}  // namespace
}  // namespace vlkv::test::move
