// A thread that goes through a kernel's instructions: its registers, and memory as the instructions see it.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/ptx/program.h"

namespace vlkv::ptx {

struct Thread {
  const Kernel& kernel;
  const char* parameters;
  char* shared;
  std::vector<uint64_t> registers;
  int64_t next = 0;
  const Instruction* now = nullptr;

  [[noreturn]] void fail(const char* what) const {
    std::fprintf(stderr, "%s, line %d of its PTX: %s\n  %s\n", kernel.name.c_str(), now->line, what,
                 now->text.c_str());
    std::abort();
  }
};

template <class T>
T get(const Thread& thread, const Operand& operand) {
  const uint64_t bits =
      operand.kind == Kind::kRegister ? thread.registers[static_cast<size_t>(operand.reg)] : operand.value;
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
void set(Thread& thread, const Operand& operand, T value) {
  if (operand.kind == Kind::kPart) return;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  thread.registers[static_cast<size_t>(operand.reg)] = bits;
}

inline uint64_t address(const Thread& thread, const Operand& operand) {
  return operand.value +
         (operand.kind == Kind::kRegister ? thread.registers[static_cast<size_t>(operand.reg)] : 0);
}

enum class Space { kGlobal, kShared, kParameter };

// Where `bytes` at an address lie on the host; what a device would refuse ends the program.
template <Space kSpace>
char* place(const Thread& thread, uint64_t at, size_t bytes) {
  if (at % bytes != 0) thread.fail("an address is not aligned to what it loads or stores");
  if constexpr (kSpace == Space::kGlobal) return reinterpret_cast<char*>(at);
  const size_t size = kSpace == Space::kShared ? thread.kernel.shared_bytes : thread.kernel.parameter_bytes;
  if (at > size || bytes > size - at) thread.fail("an address lies outside its memory");
  return kSpace == Space::kShared ? thread.shared + at : const_cast<char*>(thread.parameters) + at;
}

}  // namespace vlkv::ptx
