// Working memory of a call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vlkv::cpu {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <class T>
using Array = std::unique_ptr<T[], Free>;

// An uninitialised array of `count` elements, aligned to cache lines so that no vector straddles two. Large
// arrays are aligned to huge pages and request them: otherwise each call would pay a page fault per 4 KiB, as
// memory is returned at the end of each call.
template <class T>
Array<T> allocate(int64_t count) {
  constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  const size_t alignment = bytes < kHugePage ? kLine : kHugePage;
  void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
#endif
  return Array<T>(static_cast<T*>(memory));
}

}  // namespace vlkv::cpu
