#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "vlkv/linear.h"

namespace vlkv::test {
namespace {

constexpr double kUnit = 0x1p-24;     // half the distance of float32 numbers at 1
constexpr double kHalfUnit = 0x1p-8;  // the same of bfloat16 numbers

constexpr WeightFormat kFormats[] = {WeightFormat::kFloat32, WeightFormat::kFloat16, WeightFormat::kBFloat16,
                                     WeightFormat::kInt8, WeightFormat::kInt4};

constexpr Precision kPrecisions[] = {Precision::kFloat32, Precision::kBFloat16, Precision::kFixed16};

struct Product {
  std::vector<unsigned char> weight;
  std::vector<float> scales, bias, result;
  std::vector<uint16_t> half_scales, minimums;
  std::vector<uint8_t> zeros;
};

// Products of random sizes, and what their weights are by definition.
struct Case {
  LinearParams p;
  std::vector<float> input;
  std::vector<Product> own;
  std::vector<LinearProduct> products;

  Case(Random& random, WeightFormat format, int64_t rows, int64_t depth, std::vector<int64_t> columns,
       int64_t block = 32) {
    p.rows = rows, p.depth = depth, p.format = format;
    const bool blocks = format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
    if (blocks) p.block = block;
    if (blocks && random.integer(0, 1)) p.scale_type = DType::kFloat16;
    input.resize(static_cast<size_t>(rows * depth));
    for (float& x : input) x = random.normal();
    own.resize(columns.size());
    products.resize(columns.size());
    for (size_t i = 0; i < columns.size(); ++i) fill(random, own[i], columns[i]);
    for (size_t i = 0; i < columns.size(); ++i) products[i].columns = columns[i];
    point();
  }
  Case(const Case& other) : p(other.p), input(other.input), own(other.own), products(other.products) {
    point();
  }

  void point() {
    p.input = input.data(), p.products = products.data(), p.count = static_cast<int64_t>(products.size());
    for (size_t i = 0; i < own.size(); ++i) {
      Product& o = own[i];
      LinearProduct& to = products[i];
      to.weight = o.weight.data(), to.result = o.result.data();
      to.bias = o.bias.empty() ? nullptr : o.bias.data();
      to.zeros = o.zeros.empty() ? nullptr : o.zeros.data();
      to.minimums = o.minimums.empty() ? nullptr : o.minimums.data();
      to.scales = nullptr;
      if (!o.scales.empty()) {
        to.scales = p.scale_type == DType::kFloat32 ? static_cast<const void*>(o.scales.data())
                                                    : o.half_scales.data();
      }
    }
  }

  void fill(Random& random, Product& o, int64_t columns) {
    o.weight.resize(static_cast<size_t>(weight_bytes(p, columns)));
    o.result.assign(static_cast<size_t>(p.rows * columns), std::numeric_limits<float>::quiet_NaN());
    if (random.integer(0, 1)) {
      o.bias.resize(static_cast<size_t>(columns));
      for (float& x : o.bias) x = random.normal();
    }
    if (p.block == 0) {
      const int width = p.format == WeightFormat::kFloat32 ? 4 : 2;
      for (int64_t i = 0; i < columns * p.depth; ++i) {
        const float x = random.normal(0.1F);
        auto bits = std::bit_cast<uint32_t>(x);
        // A bit pattern of a number: its sign and some exponent around 1/8.
        if (p.format == WeightFormat::kFloat16) {
          bits = (bits >> 16 & 0x8000U) | (0x2c00U + (bits >> 10 & 0x7ffU));
        } else if (p.format == WeightFormat::kBFloat16) {
          bits >>= 16;
        }
        std::copy_n(reinterpret_cast<unsigned char*>(&bits), width, o.weight.data() + i * width);
      }
      return;
    }
    for (unsigned char& code : o.weight) code = static_cast<unsigned char>(random.integer(0, 255));
    const int64_t blocks = (p.depth + p.block - 1) / p.block;
    for (int64_t i = 0; i < columns * blocks; ++i) {
      const auto bits = static_cast<uint16_t>(random.integer(0x1000, 0x2400));  // a float16 scale
      o.half_scales.push_back(bits);
      o.scales.push_back(p.scale_type == DType::kFloat16 ? static_cast<float>(half_to_double(bits))
                                                         : std::abs(random.normal(0.01F)));
    }
    const int64_t kind = random.integer(0, 2);
    for (int64_t i = 0; kind > 0 && i < columns * blocks; ++i) {
      if (kind == 1) {
        if (p.format == WeightFormat::kInt8) return;  // without zeros
        o.zeros.push_back(static_cast<uint8_t>(random.integer(0, 16)));
      } else {
        o.minimums.push_back(static_cast<uint16_t>(random.integer(0x9000, 0xac00)));  // float16 below 0
      }
    }
  }

  double weight(size_t product, int64_t column, int64_t k) const {
    const Product& o = own[product];
    const int64_t blocks = p.block ? (p.depth + p.block - 1) / p.block : 0;
    const auto scale = [&] {
      return static_cast<double>(o.scales[static_cast<size_t>(column * blocks + k / p.block)]);
    };
    const auto at = [&]<class T>(T) {
      T x;
      std::copy_n(o.weight.data() + static_cast<size_t>(column * p.depth + k) * sizeof(T), sizeof(T),
                  reinterpret_cast<unsigned char*>(&x));
      return x;
    };
    switch (p.format) {
      case WeightFormat::kFloat32:
        return static_cast<double>(at(float{}));
      case WeightFormat::kFloat16:
        return half_to_double(at(uint16_t{}));
      case WeightFormat::kBFloat16:
        return bfloat16_to_double(at(uint16_t{}));
      case WeightFormat::kInt8: {
        const unsigned char code = o.weight[static_cast<size_t>(column * blocks * p.block + k)];
        return o.minimums.empty() ? (code - 128.0) * scale() : code * scale() + minimum(product, column, k);
      }
      case WeightFormat::kInt4:
        break;
    }
    const unsigned char pair = o.weight[static_cast<size_t>((column * blocks * p.block + k) / 2)];
    if (!o.minimums.empty()) {
      return (k % 2 ? pair >> 4 : pair & 15) * scale() + minimum(product, column, k);
    }
    const double zero = o.zeros.empty() ? 8.0 : o.zeros[static_cast<size_t>(column * blocks + k / p.block)];
    return ((k % 2 ? pair >> 4 : pair & 15) - zero) * scale();
  }

  double minimum(size_t product, int64_t column, int64_t k) const {
    const int64_t blocks = (p.depth + p.block - 1) / p.block;
    return half_to_double(own[product].minimums[static_cast<size_t>(column * blocks + k / p.block)]);
  }

  // What a weight's two terms may be larger than their sum. In fixed point a code's zero is such a term.
  double cancelled(size_t product, int64_t column, int64_t k) const {
    const Product& o = own[product];
    if (!o.minimums.empty()) return 2 * std::abs(minimum(product, column, k));
    const int64_t block =
        (p.depth + p.block - 1) / std::max<int64_t>(p.block, 1) * column + k / std::max<int64_t>(p.block, 1);
    return fixed() ? 2 * 128.0 * static_cast<double>(o.scales[static_cast<size_t>(block)]) : 0;
  }

  bool fixed() const {
    const bool asked = p.precision == Precision::kFixed16 ||
                       (p.precision == Precision::kBFloat16 && p.rows <= LinearParams::kFewRows);
    return p.block > 0 && asked && fixed16_products();
  }

  // The scale of the span of 32 numbers around number k of a row.
  double span_scale(int64_t row, int64_t k) const {
    double largest = 0;
    for (int64_t i = k / 32 * 32; i < std::min(p.depth, k / 32 * 32 + 32); ++i) {
      largest =
          std::max(largest, std::abs(static_cast<double>(input[static_cast<size_t>(row * p.depth + i)])));
    }
    return largest / 32512;
  }

  // The definition, in double. A weight is rounded once or twice; then `depth` products and sums, and the
  // bias.
  void expect_right(const std::string& text) const {
    const bool half =
        p.precision == Precision::kBFloat16 && bfloat16_products() && p.rows > LinearParams::kFewRows;
    const double error = (static_cast<double>(p.depth) + 4) * kUnit + (half ? 2.01 * kHalfUnit : 0.0);
    const bool in_fixed = fixed();
    for (size_t i = 0; i < own.size(); ++i) {
      for (int64_t m = 0; m < p.rows; ++m) {
        for (int64_t n = 0; n < products[i].columns; ++n) {
          const double bias =
              own[i].bias.empty() ? 0.0 : static_cast<double>(own[i].bias[static_cast<size_t>(n)]);
          double sum = bias, magnitude = std::abs(bias), rounded = 0, scale = 0;
          for (int64_t k = 0; k < p.depth; ++k) {
            if (in_fixed && k % 32 == 0) scale = span_scale(m, k);
            // Half a step, and as much again for each of three roundings of up to 32512 steps.
            rounded += std::abs(weight(i, n, k)) * scale * (0.5 + 3 * 32512 * kUnit);
            const double term =
                weight(i, n, k) * static_cast<double>(input[static_cast<size_t>(m * p.depth + k)]);
            const double x = std::abs(static_cast<double>(input[static_cast<size_t>(m * p.depth + k)]));
            sum += term, magnitude += std::abs(term) + cancelled(i, n, k) * x;
          }
          ASSERT_NEAR(own[i].result[static_cast<size_t>(m * products[i].columns + n)], sum,
                      error * magnitude + rounded + 0x1p-126)
              << text << " product " << i << " row " << m << " column " << n;
        }
      }
    }
  }
};

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
}  // namespace vlkv::test
