// The table of opcodes, which two files fill: steps.cpp and together.cpp.
#pragma once

#include <string>
#include <unordered_map>

#include "cuda/ptx/thread.h"

namespace vlkv::ptx {

using Table = std::unordered_map<std::string, Step>;

// Barriers, and what threads do together: shuffles, votes, reductions, matrices, copies to shared memory.
void add_steps_together(Table& all);

}  // namespace vlkv::ptx
