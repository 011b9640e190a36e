#include "vlkv/move_slots.h"

#include "core/check.h"

namespace vlkv {

void validate(const MoveSlotsParams& p) {
  const Check check("move_slots");
  check.range("layers", p.layers, 1, 65536);
  check.range("batch", p.batch, 0, 1 << 20);
  check.range("kv_heads", p.kv_heads, 1, 65536);
  check.range("slot_bytes", p.slot_bytes, 2, 1 << 20);
  check.require(p.slot_bytes % 2 == 0, "slot_bytes ", p.slot_bytes, " is odd");
  const int64_t most = (int64_t{1} << 30) / (p.layers * p.kv_heads);
  check.require(p.batch <= most, "layers, batch and kv_heads ", p.layers, ", ", p.batch, " and ", p.kv_heads,
                " are more than 2^30 heads; a batch of at most ", most, " fits");
  if (p.batch == 0) return;
  check.require(p.arrays != nullptr, "arrays is null");
  check.require(p.capacity != nullptr, "capacity is null");
  check.require(p.slots != nullptr, "slots is null");
  check.require(p.last != nullptr, "last is null");
}

}  // namespace vlkv
