// The rotation of rows that int8 caches hold: vlkv/types.h, kInt8.
#pragma once

#include <cstdint>

namespace vlkv::cpu {

// rows[i] = H . rows[i] for `count` dense rows of `dim` elements. H is orthonormal, symmetric and its own
// inverse: the Hadamard matrix over blocks of the largest power of two that divides dim, by stages of widths
// 1, 2, 4, ..., then a product with 1 / sqrt(block).
void rotate(float* rows, int64_t count, int64_t dim);

}  // namespace vlkv::cpu
