// MoveSlots on the device against its definition.
#include <memory>
#include <utility>

#include "check.h"

namespace vlkv::check {

void check_move_slots(Random& random) {
  MoveSlotsParams p;
  p.layers = random.integer(1, 4), p.batch = random.integer(1, 3), p.kv_heads = random.integer(1, 5);
  p.slot_bytes = 2 * random.integer(1, 200);
  const int64_t heads = p.batch * p.kv_heads;
  std::vector<int64_t> capacity, slots, last;
  for (int64_t layer = 0; layer < p.layers; ++layer) {
    capacity.push_back(random.integer(1, 40));
    for (int64_t b = 0; b < p.batch; ++b) last.push_back(random.integer(-1, capacity.back()));
    for (int64_t head = 0; head < heads; ++head) slots.push_back(random.integer(-1, capacity.back()));
  }
  std::vector<std::vector<unsigned char>> wanted;
  std::vector<std::unique_ptr<Device>> there;
  std::vector<void*> arrays;
  for (int64_t array = 0; array < 2 * p.layers; ++array) {
    const auto layer = array % p.layers;
    const int64_t most = capacity[static_cast<size_t>(layer)];
    std::vector<unsigned char> bytes(static_cast<size_t>(heads * most * p.slot_bytes));
    for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random.integer(0, 255));
    there.push_back(std::make_unique<Device>(bytes));
    arrays.push_back(there.back()->as<void>());
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t from = last[static_cast<size_t>(layer * p.batch + head / p.kv_heads)];
      const int64_t to = slots[static_cast<size_t>(layer * heads + head)];
      if (from < 0 || from >= most || to < 0 || to >= most) continue;
      unsigned char* const first = bytes.data() + head * most * p.slot_bytes;
      std::memmove(first + to * p.slot_bytes, first + from * p.slot_bytes, static_cast<size_t>(p.slot_bytes));
    }
    wanted.push_back(std::move(bytes));
  }
  const Device arrays_there(arrays), capacity_there(capacity), slots_there(slots), last_there(last);
  p.arrays = arrays_there.as<void*>(), p.capacity = capacity_there.as<int64_t>();
  p.slots = slots_there.as<int64_t>(), p.last = last_there.as<int64_t>();
  run_cuda(p, nullptr);
  require(cudaDeviceSynchronize());
  for (size_t array = 0; array < wanted.size(); ++array) {
    require(there[array]->read<unsigned char>() == wanted[array], "moved slots differ");
  }
}

}  // namespace vlkv::check
