#include "cpu/rotate.h"

#include <cmath>

namespace vlkv::cpu {
namespace {

void stage(float* block, int64_t size, int64_t width) {
  for (int64_t begin = 0; begin < size; begin += 2 * width) {
    float* low = block + begin;
    float* high = low + width;
    for (int64_t i = 0; i < width; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a + b, high[i] = a - b;
    }
  }
}

}  // namespace

void rotate(float* rows, int64_t count, int64_t dim) {
  const int64_t block = dim & -dim, blocks = count * (dim / block);
  const float factor = 1.0F / std::sqrt(static_cast<float>(block));
  for (int64_t n = 0; n < blocks; ++n) {
    float* own = rows + n * block;
    for (int64_t width = 1; width < block; width *= 2) stage(own, block, width);
    for (int64_t i = 0; i < block; ++i) own[i] *= factor;
  }
}

}  // namespace vlkv::cpu
