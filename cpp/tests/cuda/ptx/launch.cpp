#include "cuda/ptx/launch.h"

#include <dlfcn.h>

#include <algorithm>
#include <sstream>

#include "cuda/emulation.h"
#include "cuda/ptx/thread.h"

namespace vlkv::ptx {
namespace {

Program& program() {
  static Program all = [] {
    std::vector<std::string> paths;
    std::stringstream listed(VLKV_PTX_FILES);
    for (std::string path; std::getline(listed, path, '|');) paths.push_back(path);
    return Program(paths);
  }();
  return all;
}

void require(bool holds, const std::string& name, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s: %s\n", name.c_str(), what);
  std::abort();
}

void run_thread(const Kernel& kernel, const void* arguments, char* shared) {
  Thread thread{kernel, static_cast<const char*>(arguments), shared, {}};
  // NaN to whoever reads a register before it is written
  thread.registers.assign(static_cast<size_t>(std::max(kernel.registers, 2)), ~uint64_t{0});
  thread.registers[0] = threadIdx.x, thread.registers[1] = blockIdx.x;
  const auto end = static_cast<int64_t>(kernel.instructions.size());
  while (thread.next < end) {
    const Instruction& now = kernel.instructions[static_cast<size_t>(thread.next++)];
    if (now.predicate >= 0 && (thread.registers[static_cast<size_t>(now.predicate)] != 0) == now.negated) {
      continue;
    }
    thread.now = &now;
    now.step(thread, now);
  }
}

}  // namespace

void launch(const void* kernel, int64_t blocks, int threads, const void* arguments, size_t argument_bytes) {
  Dl_info info{};
  require(dladdr(kernel, &info) != 0 && info.dli_sname != nullptr && info.dli_saddr == kernel, "a kernel",
          "has no name: the program must export its symbols");
  const Kernel& found = program().kernel(info.dli_sname);
  require(argument_bytes == found.parameter_bytes, found.name, "takes other arguments");
  require(threads == found.threads, found.name, "is bound to another number of threads");
  std::vector<char> shared(found.shared_bytes);
  int64_t block = -1;
  emulation::run(blocks, threads, [&] {
    if (block != int64_t{blockIdx.x}) {
      block = blockIdx.x;
      std::fill(shared.begin(), shared.end(), static_cast<char>(0xff));
    }
    run_thread(found, arguments, shared.data());
  });
}

}  // namespace vlkv::ptx
