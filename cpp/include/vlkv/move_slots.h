// MoveSlots: in every layer of a cache each prompt's newest slot takes the place of another, head by head:
// what a policy that evicts while it decodes asks for after a step. Attention does not depend on the order of
// slots, so that this is all that dropping a token needs.
#pragma once

#include "vlkv/types.h"

namespace vlkv {

// L layers, B prompts, Hkv KV heads, C cache slots of a layer.
//
//   arrays    [2 * L]       keys of all layers, then values: dense [B, Hkv, C_l, slot_bytes]
//   capacity  [L]           C_l
//   slots     [L, B, Hkv]   where to; what lies outside [0, C_l) leaves a head alone
//   last      [L, B]        where from; what lies outside [0, C_l) leaves a prompt alone
struct MoveSlotsParams {
  int64_t layers = 0, batch = 0, kv_heads = 0, slot_bytes = 0;
  void* const* arrays = nullptr;
  const int64_t* capacity = nullptr;
  const int64_t* slots = nullptr;
  const int64_t* last = nullptr;
};

// Sizes and pointers; reads no array. Throws InvalidArgument.
VLKV_API void validate(const MoveSlotsParams& params);

}  // namespace vlkv
