// Selects the highest scores in O(n).
#pragma once

#include <cstdint>

namespace vlkv::cpu {

// Writes the slots of the `count` highest scores among slots [begin, end) to `slots`, ascending; ties go to
// the lower slot; NaN comes after every number; -0 equals +0. 0 <= count <= end - begin. `scratch` holds 2 *
// (end - begin) words.
void select_highest(const float* score, int64_t begin, int64_t end, int64_t count, uint32_t* scratch,
                    int32_t* slots);

}  // namespace vlkv::cpu
