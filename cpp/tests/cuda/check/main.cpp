// vlkv_cuda_check [CASES [SEED]]: random cases of every operator on the device, 100 of each unless told
// otherwise. Exits 1 where a result is wrong, 2 where an argument is no number, 77 without a device. Small,
// for compute-sanitizer.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>

#include "check.h"

namespace {

struct Operator {
  const char* name;
  void (*check)(vlkv::check::Random&);
};
constexpr Operator kOperators[] = {
    {"Score", vlkv::check::check_score},   {"Evict", vlkv::check::check_evict},
    {"Attend", vlkv::check::check_attend}, {"MoveSlots", vlkv::check::check_move_slots},
    {"Pick", vlkv::check::check_pick},     {"Draw", vlkv::check::check_draw}};

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i, uint64_t otherwise) {
    if (i >= argc) return otherwise;
    char* end = nullptr;
    const uint64_t given = std::strtoull(argv[i], &end, 10);
    return *end == '\0' && argv[i][0] >= '0' && argv[i][0] <= '9' ? given : uint64_t{0};
  };
  const uint64_t cases = number(1, 100), seed = number(2, uint64_t{std::random_device{}()} + 1);
  if (argc > 3 || cases == 0 || seed == 0) {
    std::printf("usage: vlkv_cuda_check [CASES [SEED]], whole numbers from 1\n");
    return 2;
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device (%s)\n",
                error != cudaSuccess ? cudaGetErrorString(error) : "the driver lists none");
    return 77;
  }
  vlkv::check::Random random(seed);
  for (const Operator& one : kOperators) {
    for (uint64_t i = 0; i < cases; ++i) {
      try {
        one.check(random);
      } catch (const std::exception& wrong) {
        std::printf("%s, case %llu of seed %llu: %s\n", one.name, i + 1ULL, seed + 0ULL, wrong.what());
        return 1;
      }
    }
  }
  std::printf("%llu cases of each operator right\n", cases + 0ULL);
  return 0;
}
