// PTX as nvcc writes it, read into instructions with numbered registers.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace vlkv::ptx {

struct Thread;
struct Instruction;
using Step = void (*)(Thread&, const Instruction&);

enum class Kind : uint8_t { kRegister, kNumber, kPart };  // kPart: one of a vector's registers is not used

struct Operand {
  Kind kind = Kind::kNumber;
  int32_t reg = -1;    // a register's number, or an address's base, -1 for none
  uint64_t value = 0;  // a number's bits, or what is added to an address
};

// @[!]predicate step operands. A vector's elements are operands one after the other.
struct Instruction {
  Step step = nullptr;
  int32_t predicate = -1;
  bool negated = false;
  std::vector<Operand> operands;
  std::vector<int> sizes;  // of the vectors among the operands, 1 for the others
  int64_t target = -1;     // of a branch
  int line = 0;
  std::string text;
};

struct Kernel {
  std::string name;
  size_t parameter_bytes = 0, shared_bytes = 0;
  int32_t registers = 0;
  int threads = 0;  // .maxntid
  std::vector<Instruction> instructions;
};

// All kernels of some files; a kernel's text is read when it is first asked for.
class Program {
 public:
  explicit Program(const std::vector<std::string>& paths);
  // Ends the program where there is none of that (mangled) name.
  const Kernel& kernel(const std::string& name);
  std::vector<std::string> names() const;

 private:
  struct Text {
    std::string path, text;
    size_t entry;
  };
  std::map<std::string, Text> texts_;
  std::map<std::string, Kernel> kernels_;
};

// The step of an opcode, "add.s64"; null where none is known.
Step step_of(const std::string& opcode);

}  // namespace vlkv::ptx
