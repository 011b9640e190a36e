// Linear's cases and their float64 oracle.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"
#include "vlkv/linear.h"

namespace vlkv::test::linear {

inline constexpr double kUnit = 0x1p-24;     // half the distance of float32 numbers at 1
inline constexpr double kHalfUnit = 0x1p-8;  // the same of bfloat16 numbers

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

}  // namespace vlkv::test::linear
