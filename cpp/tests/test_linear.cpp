#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "linear_case.h"

namespace vlkv::test::linear {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kFloat32, WeightFormat::kFloat16, WeightFormat::kBFloat16,
                                     WeightFormat::kInt8, WeightFormat::kInt4};

constexpr Precision kPrecisions[] = {Precision::kFloat32, Precision::kBFloat16, Precision::kFixed16};

TEST(Linear, MatchesTheDefinition) {
  Random random(41);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const WeightFormat format : kFormats) {
      for (int i = 0; i < 14; ++i) {
        const int64_t rows = i % 2 ? random.integer(1, 16) : random.integer(17, 70);
        Case c(random, format, rows, random.integer(1, i % 4 ? 100 : 1100),
               {random.integer(0, 40), random.integer(1, i % 5 ? 9 : 130)},
               random.pick<int64_t>({32, 64, 96, 128}));
        c.p.threads = static_cast<int>(random.integer(1, 3));
        for (const Precision precision : kPrecisions) {
          c.p.precision = precision;
          run_cpu(c.p);
          c.expect_right(std::string(kernels.name) + " format " + std::to_string(static_cast<int>(format)) +
                         " rows " + std::to_string(rows) + " depth " + std::to_string(c.p.depth));
        }
      }
    }
  }
}

TEST(Linear, ARowHasTheSameBitsInEveryBatch) {
  Random random(42);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const WeightFormat format : kFormats) {
      const int64_t depth = random.pick<int64_t>({64, 77, 250});
      Case all(random, format, 16, depth, {37});
      all.p.precision = random.pick({Precision::kFloat32, Precision::kFixed16});
      if (random.integer(0, 1))
        all.input[static_cast<size_t>(random.integer(0, 15) * depth)] = 1e30F;  // not in fixed point
      run_cpu(all.p);
      for (int64_t rows = 1; rows < 16; ++rows) {
        Case some = all;
        const int64_t first = random.integer(0, 16 - rows);
        some.p.rows = rows, some.p.input = some.input.data() + first * depth;
        run_cpu(some.p);
        for (int64_t i = 0; i < rows * 37; ++i) {
          ASSERT_EQ(some.own[0].result[static_cast<size_t>(i)],
                    all.own[0].result[static_cast<size_t>(first * 37 + i)])
              << kernels.name << " " << static_cast<int>(format) << " rows " << rows;
        }
      }
    }
  }
}

TEST(Linear, ManyRowsHaveTheSameBitsInEveryCompany) {
  Random random(43);
  for (const Precision precision : kPrecisions) {
    Case all(random, random.pick({WeightFormat::kInt8, WeightFormat::kInt4}), 300, 600, {50});
    all.p.precision = precision;
    // Rows that stay in float32 where the others do not.
    for (const int64_t row : {7, 271, 272, 299}) all.input[static_cast<size_t>(row * 600 + 5)] = 1e30F;
    Case some = all;
    some.p.rows = 20, some.p.input = some.input.data() + 270 * 600, some.p.threads = 1;
    run_cpu(all.p);
    run_cpu(some.p);
    for (size_t i = 0; i < 20 * 50; ++i) {
      ASSERT_EQ(some.own[0].result[i], all.own[0].result[270 * 50 + i]);
    }
  }
}

TEST(Linear, AFrameworksLoopGivesTheSameBits) {
  Random random(44);
  for (const int64_t rows : {3, 40}) {
    Case own(random, WeightFormat::kInt4, rows, 2048, {300, 200});
    Case other = own;
    int64_t calls = 0;
    const Loop backwards{[](void* owner, int64_t count, void (*body)(void*, int64_t), void* data) {
                           for (int64_t i = count; i-- > 0;) body(data, i), ++*static_cast<int64_t*>(owner);
                         },
                         &calls};
    run_cpu(own.p);
    run_cpu(other.p, backwards);
    EXPECT_GT(calls, 2);
    EXPECT_EQ(own.own[0].result, other.own[0].result);
    EXPECT_EQ(own.own[1].result, other.own[1].result);
  }
}

TEST(Linear, WhatIsNotFiniteStaysInItsRowOrColumn) {
  Random random(45);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const WeightFormat format : kFormats) {
      for (int i = 0; i < 4; ++i) {
        Case c(random, format, i % 2 ? 5 : 33, 70, {21});
        c.p.precision = i / 2 ? Precision::kFixed16 : Precision::kFloat32;
        c.own[0].bias.clear();
        c.point();
        c.input[70 + 69] = std::numeric_limits<float>::quiet_NaN();
        for (int64_t k = 0; k < 70; ++k) c.input[static_cast<size_t>(2 * 70 + k)] = 0x1p-140F;  // denormal
        c.input[3 * 70] = infinity;
        run_cpu(c.p);
        for (int64_t n = 0; n < 21; ++n) {
          const auto result = [&](int64_t m) { return c.own[0].result[static_cast<size_t>(m * 21 + n)]; };
          EXPECT_TRUE(std::isfinite(result(0)) && std::isfinite(result(2)) && std::isfinite(result(4)));
          EXPECT_TRUE(std::isnan(result(1)));
          EXPECT_LT(std::abs(result(2)), 0x1p-126F);
          const double weight = c.weight(0, n, 0);
          if (weight == 0) {
            EXPECT_TRUE(std::isnan(result(3)));
          } else {
            EXPECT_EQ(result(3), weight > 0 ? infinity : -infinity) << kernels.name;
          }
        }
      }
    }
  }
}

// The row that is multiplied is nearer to the one in fixed point than to the given one. A number next to the
// middle of two steps may be rounded to the other one.
TEST(Linear, FixedPointIsWhatIsSaid) {
  Random random(47);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    if (!fixed16_products()) continue;
    for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      for (const int64_t rows : {1, 3, 16, 40}) {
        Case c(random, format, rows, random.integer(30, 700), {33}, random.pick<int64_t>({32, 96, 256}));
        c.own[0].bias.clear();
        c.point();
        c.p.precision = Precision::kFixed16;
        run_cpu(c.p);
        double from_fixed = 0, from_float = 0;
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < 33; ++n) {
            double rounded = 0, exact = 0;
            for (int64_t k = 0; k < c.p.depth; ++k) {
              const double scale = c.span_scale(m, k);
              const auto x = static_cast<double>(c.input[static_cast<size_t>(m * c.p.depth + k)]);
              rounded += c.weight(0, n, k) * std::nearbyint(x / scale) * scale,
                  exact += c.weight(0, n, k) * x;
            }
            const double result = c.own[0].result[static_cast<size_t>(m * 33 + n)];
            from_fixed += std::abs(result - rounded), from_float += std::abs(result - exact);
          }
        }
        EXPECT_LT(from_fixed, from_float) << kernels.name << " " << static_cast<int>(format) << " " << rows;
      }
    }
  }
}

// One of 1e4 in each span, whose weight is 0. In 8 bits the others would all be 0.
TEST(Linear, FixedPointKeepsSmallNumbersBesideLargeOnes) {
  Random random(48);
  for (const NamedKernels& kernels : all_kernels()) {
    const WithKernels with(*kernels.table);
    for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      for (const int64_t rows : {1, 20}) {
        Case c(random, format, rows, 96, {5});
        c.p.precision = Precision::kFixed16;
        c.own[0].bias.clear(), c.own[0].zeros.clear(), c.own[0].minimums.clear();
        c.point();
        const bool bytes = format == WeightFormat::kInt8;
        for (size_t i = 0; i < c.own[0].weight.size(); ++i) c.own[0].weight[i] = bytes ? 200 : 0xdd;
        for (int64_t n = 0; n < 5; ++n) {
          for (int64_t k = 3; k < 96; k += 32) {
            const auto at = static_cast<size_t>(n * 96 + k);
            bytes ? c.own[0].weight[at] = 128 : c.own[0].weight[at / 2] = 0x8d;
          }
        }
        for (int64_t i = 0; i < rows * 96; ++i) c.input[static_cast<size_t>(i)] = i % 32 == 3 ? -1e4F : 1.0F;
        run_cpu(c.p);
        c.expect_right(kernels.name);
        for (int64_t i = 0; i < rows * 5; ++i) {
          double sum = 0;
          for (int64_t k = 0; k < 96; ++k) sum += k % 32 == 3 ? 0 : c.weight(0, i % 5, k);
          EXPECT_NEAR(c.own[0].result[static_cast<size_t>(i)], sum, 0.2 * sum) << kernels.name;
        }
      }
    }
  }
}

// A row keeps float32 where fixed point can't hold it; its result is that of kFloat32, bit for bit.
TEST(Linear, RowsThatFixedPointCannotHoldStayInFloat32) {
  Random random(49);
  for (const int64_t rows : {4, 60}) {
    for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      Case c(random, format, rows, 200, {40});
      for (int64_t k = 0; k < 200; ++k) {
        c.input[static_cast<size_t>(200 + k)] *= 0x1p-80F, c.input[static_cast<size_t>(400 + k)] *= 0x1p80F;
        c.input[static_cast<size_t>(600 + k)] = 0;
      }
      Case other = c;
      c.p.precision = Precision::kFixed16;
      run_cpu(c.p);
      c.expect_right("rows " + std::to_string(rows));
      other.p.rows = 2, other.p.input = other.input.data() + 200;
      run_cpu(other.p);
      for (size_t i = 0; i < 80; ++i) ASSERT_EQ(c.own[0].result[40 + i], other.own[0].result[i]);
    }
  }
}

TEST(Linear, NothingToDoIsValid) {
  LinearParams p;
  p.depth = 5;
  EXPECT_NO_THROW(run_cpu(p));
  p.rows = 3;
  const float input[15] = {};
  p.input = input;
  const LinearProduct empty;
  p.products = &empty, p.count = 1;
  EXPECT_NO_THROW(run_cpu(p));
  p.rows = 20;
  const std::vector<float> many(100);
  p.input = many.data();
  EXPECT_NO_THROW(run_cpu(p));
}

TEST(Linear, RefusesWhatDoesNotFit) {
  Random random(46);
  const auto refused = [&](WeightFormat format, auto change, const std::string& text) {
    Case c(random, format, 2, 64, {3});
    change(c);
    try {
      run_cpu(c.p);
      ADD_FAILURE() << "not refused: " << text;
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  };
  using enum WeightFormat;
  refused(kInt8, [](Case& c) { c.p.block = 48; }, "[linear] block is 48, not a multiple of 32");
  refused(kInt4, [](Case& c) { c.p.block = 0; }, "block is 0, not in [32,");
  refused(kFloat16, [](Case& c) { c.p.block = 32; }, "weights that are floats have no block, not one of 32");
  refused(kInt4, [](Case& c) { c.p.scale_type = DType::kBFloat16; }, "scales have dtype 2");
  refused(kInt4, [](Case& c) { c.products[0].scales = nullptr; }, "scales is null");
  refused(kInt8, [](Case& c) { c.products[0].zeros = c.own[0].weight.data(); }, "have no zeros");
  refused(kFloat32, [](Case& c) { c.p.depth = 0; }, "depth is 0");
  refused(kFloat32, [](Case& c) { c.p.rows = -1; }, "rows is -1");
  refused(kFloat32, [](Case& c) { c.p.input = nullptr; }, "input is null");
  refused(kFloat32, [](Case& c) { c.products[0].weight = nullptr; }, "weight is null");
  refused(kFloat32, [](Case& c) { c.products[0].result = nullptr; }, "result is null");
  refused(kFloat32, [](Case& c) { c.p.format = static_cast<WeightFormat>(7); }, "format is 7");
  refused(kFloat32, [](Case& c) { c.p.threads = -1; }, "threads is -1");
  refused(kInt8, [](Case& c) { c.p.precision = static_cast<Precision>(3); }, "precision is 3, not in [0, 2]");
}

}  // namespace
}  // namespace vlkv::test::linear
