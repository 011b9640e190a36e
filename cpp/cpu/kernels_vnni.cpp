// Products of 8- and 4-bit weights with rows in 16-bit fixed point, for processors with AVX512_VNNI.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's intrinsics leave operands so on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "cpu/constants.h"
#include "cpu/linear_kernels.h"

#define VLKV_LANES 16

namespace vlkv::cpu {
namespace {

constexpr int kLanes = VLKV_LANES;

// The order matters: later files use the earlier ones.
// clang-format off
#include "cpu/vector.inl"
#include "cpu/sums.inl"
#include "cpu/linear_shared.inl"
#include "cpu/fixed_rows.inl"
#include "cpu/fixed_scales.inl"
#include "cpu/fixed_few.inl"
#include "cpu/fixed_many.inl"
// clang-format on

}  // namespace

extern const FixedKernels kVnniKernels;
const FixedKernels kVnniKernels = {round_row, multiply_few, pack_row, unpack, multiply_tile};

}  // namespace vlkv::cpu
