// Tensors of the C entry points with arbitrary shapes, strides and contents.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fuzz/bytes.h"
#include "vlkv/c_api.h"

namespace vlkv::fuzz {

struct Memory {
  std::vector<std::unique_ptr<uint8_t[]>> blocks;

  // A buffer of exactly the size that the tensor claims.
  vlkv_tensor tensor(Bytes& in, int64_t heads, int64_t slots, int64_t dim, int64_t batch, bool dense) {
    vlkv_tensor t{};
    t.dtype = in.byte() % 16 == 0 ? in.byte() : in.byte() % 3;
    t.stride_s = dense ? dim : in.number(20);
    t.stride_h = dense ? product(dim, slots) : in.number(200);
    t.stride_b = dense ? product(product(dim, slots), heads) : in.number(2000);
    const int64_t item = t.dtype == VLKV_FLOAT32 ? 4 : 2;
    const double dense_bytes = 1.0 * static_cast<double>(batch) * static_cast<double>(heads) *
                               static_cast<double>(slots) * static_cast<double>(dim) *
                               static_cast<double>(item);
    const double needed = dense ? dense_bytes : static_cast<double>(in.number(9000));
    t.bytes = needed < 0 || needed > 1 << 20 ? 0 : static_cast<uint64_t>(needed);
    blocks.push_back(std::make_unique<uint8_t[]>(t.bytes));
    const uint8_t seed = in.byte();
    for (uint64_t i = 0; i < t.bytes; ++i)
      blocks.back()[i] = static_cast<uint8_t>((seed * (i + 1) * 37) >> 3);
    for (int i = 0; i < 8 && t.bytes > 0; ++i) blocks.back()[in.byte() % t.bytes] = in.byte();
    t.data = blocks.back().get();
    return t;
  }
};

inline size_t count_of(int64_t a, int64_t b = 1, int64_t c = 1) {
  const double count = static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c);
  return count < 0 || count > 100000 ? 0 : static_cast<size_t>(count);
}

}  // namespace vlkv::fuzz
