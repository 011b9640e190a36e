// One table of kernels. The including file defines VLKV_KERNELS_NAMESPACE, VLKV_LANES, VLKV_ACCUMULATORS and
// VLKV_TABLE. Needs the compiler's vector extension (GCC, Clang).
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/kernels.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace vlkv::cpu {
namespace VLKV_KERNELS_NAMESPACE {
namespace {

constexpr int kLanes = VLKV_LANES;
constexpr int kAccumulators = VLKV_ACCUMULATORS;
// Vectors of rows that share each broadcast of a key's element: 32 rows, whose 16 KiB at D = 128 stay in the
// first-level cache. With few accumulators, too few keys would share each load of so many rows.
constexpr int kGroup = kAccumulators >= 12 ? 32 / kLanes : 2;
constexpr int kLineFloats = 16;  // of a cache line
constexpr float kLargest = 3.4028234e38F;

// The order matters: later files use the earlier ones.
// clang-format off
#include "cpu/vector.inl"
#include "cpu/convert.inl"
#include "cpu/score_kernel.inl"
#include "cpu/attend_kernel.inl"
#include "cpu/linear_weights.inl"
#include "cpu/linear_few.inl"
#include "cpu/linear_many.inl"
// clang-format on

}  // namespace
}  // namespace VLKV_KERNELS_NAMESPACE

extern const Kernels VLKV_TABLE;
const Kernels VLKV_TABLE = {
    VLKV_LANES,
    VLKV_KERNELS_NAMESPACE::kGroup,
    VLKV_KERNELS_NAMESPACE::to_float,
    VLKV_KERNELS_NAMESPACE::from_float,
    VLKV_KERNELS_NAMESPACE::weigh,
    VLKV_KERNELS_NAMESPACE::combine,
    VLKV_KERNELS_NAMESPACE::add_columns,
    VLKV_KERNELS_NAMESPACE::attend,
    VLKV_KERNELS_NAMESPACE::add,
    VLKV_KERNELS_NAMESPACE::sum_words,
    VLKV_KERNELS_NAMESPACE::multiply_adds,
    {
        VLKV_KERNELS_NAMESPACE::kTileRows,
        VLKV_KERNELS_NAMESPACE::kTileColumns,
        VLKV_KERNELS_NAMESPACE::arrange,
        VLKV_KERNELS_NAMESPACE::multiply_few,
        VLKV_KERNELS_NAMESPACE::widen,
        VLKV_KERNELS_NAMESPACE::widen_half,
        VLKV_KERNELS_NAMESPACE::pack,
        VLKV_KERNELS_NAMESPACE::pack_half,
        VLKV_KERNELS_NAMESPACE::multiply_many,
        nullptr,
        VLKV_KERNELS_NAMESPACE::finish,
    },
};

}  // namespace vlkv::cpu
