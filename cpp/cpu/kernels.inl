// One table of kernels. The including file defines VLKV_KERNELS_NAMESPACE, VLKV_LANES, VLKV_ACCUMULATORS and
// VLKV_TABLE. Needs the compiler's vector extension (GCC, Clang).
//
// VLKV_PARTS: the operators whose kernels the table has, 1 Score, 2 Attend, 4 Linear; the others are null. A
// tuned library compiles each operator's with flags of its own (cpp/tuned).
#ifndef VLKV_PARTS
#define VLKV_PARTS 7
#endif
#if VLKV_PARTS & 1
#define VLKV_OF_SCORE(name) VLKV_KERNELS_NAMESPACE::name
#else
#define VLKV_OF_SCORE(name) nullptr
#endif
#if VLKV_PARTS & 2
#define VLKV_OF_ATTEND(name) VLKV_KERNELS_NAMESPACE::name
#define VLKV_SIZE_OF_ATTEND(name) VLKV_KERNELS_NAMESPACE::name
#else
#define VLKV_OF_ATTEND(name) nullptr
#define VLKV_SIZE_OF_ATTEND(name) 0
#endif
#if VLKV_PARTS & 4
#define VLKV_OF_LINEAR(name) VLKV_KERNELS_NAMESPACE::name
#define VLKV_SIZE_OF_LINEAR(name) VLKV_KERNELS_NAMESPACE::name
#else
#define VLKV_OF_LINEAR(name) nullptr
#define VLKV_SIZE_OF_LINEAR(name) 0
#endif
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
#include "cpu/rate.inl"
#include "cpu/convert.inl"
#if VLKV_PARTS & 1
#include "cpu/score_kernel.inl"
#endif
#if VLKV_PARTS & 6
#include "cpu/sums.inl"
#endif
#if VLKV_PARTS & 2
#include "cpu/attend_kernel.inl"
#include "cpu/attend_block.inl"
#include "cpu/recall_kernel.inl"
#endif
#if VLKV_PARTS & 4
#include "cpu/linear_shared.inl"
#include "cpu/linear_weights.inl"
#include "cpu/linear_rows.inl"
#include "cpu/linear_few.inl"
#include "cpu/linear_many.inl"
#endif
// clang-format on

}  // namespace
}  // namespace VLKV_KERNELS_NAMESPACE

extern const Kernels VLKV_TABLE;
const Kernels VLKV_TABLE = {
    VLKV_LANES,
    VLKV_KERNELS_NAMESPACE::kGroup,
    VLKV_KERNELS_NAMESPACE::to_float,
    VLKV_KERNELS_NAMESPACE::from_float,
    VLKV_OF_SCORE(weigh),
    VLKV_OF_SCORE(combine),
    VLKV_OF_SCORE(add_columns),
    VLKV_OF_ATTEND(attend),
    VLKV_SIZE_OF_ATTEND(kBlockVectors),
    VLKV_OF_ATTEND(attend_block),
    nullptr,
    VLKV_OF_ATTEND(rate_pages),
    VLKV_KERNELS_NAMESPACE::add,
    VLKV_KERNELS_NAMESPACE::sum_words,
    VLKV_KERNELS_NAMESPACE::multiply_adds,
    {
        VLKV_SIZE_OF_LINEAR(kTileRows),
        VLKV_SIZE_OF_LINEAR(kTileColumns),
        VLKV_OF_LINEAR(arrange),
        VLKV_OF_LINEAR(normalize),
        VLKV_OF_LINEAR(gate),
        VLKV_OF_LINEAR(multiply_few),
        VLKV_OF_LINEAR(widen),
        VLKV_OF_LINEAR(widen_half),
        VLKV_OF_LINEAR(pack),
        VLKV_OF_LINEAR(pack_half),
        VLKV_OF_LINEAR(multiply_many),
        nullptr,
        VLKV_OF_LINEAR(finish),
        nullptr,
    },
};

}  // namespace vlkv::cpu
