// Fuzzes Linear on CPUs with arbitrary sizes, formats and contents. A call either refuses and writes nothing,
// or stays inside its buffers, which the sanitizers check, and does what vlkv/linear.h says: it answers the
// same on any number of threads, a row of few alone as among others, and tame numbers as the definition in
// float64.
#include "vlkv/linear.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "fuzz/bytes.h"
#include "fuzz/targets.h"

namespace vlkv::fuzz {
namespace {

constexpr int64_t kCompared = 12;     // results of a product that are compared with the definition
constexpr double kHalfUnit = 0x1p-8;  // half the distance of bfloat16 numbers at 1

struct Product {
  std::vector<uint8_t> weight, scales, zeros, minimums;
  std::vector<float> bias, residual, result;
};

template <class T>
auto* or_null(T& values) {
  return values.empty() ? nullptr : values.data();
}

struct Call {
  LinearParams p;
  std::vector<float> input, norm, gated;
  std::vector<Product> own;
  std::vector<LinearProduct> products;

  void point(int missing) {
    p.input = missing == 1 ? nullptr : input.data();
    p.norm = or_null(norm), p.gated = or_null(gated);
    for (size_t i = 0; i < own.size(); ++i) {
      LinearProduct& to = products[i];
      Product& from = own[i];
      to.weight = missing == 2 ? nullptr : from.weight.data();
      to.scales = missing == 3 ? nullptr : or_null(from.scales);
      to.zeros = or_null(from.zeros), to.bias = or_null(from.bias), to.residual = or_null(from.residual);
      to.minimums = reinterpret_cast<const uint16_t*>(or_null(from.minimums));
      to.result = missing == 4 ? nullptr : from.result.data();
    }
    p.products = missing == 5 ? nullptr : products.data();
  }
};

bool in_blocks(WeightFormat format) { return format == WeightFormat::kInt8 || format == WeightFormat::kInt4; }

DType floats(WeightFormat format) {
  return format == WeightFormat::kFloat32   ? DType::kFloat32
         : format == WeightFormat::kFloat16 ? DType::kFloat16
                                            : DType::kBFloat16;
}

void fill(Call& call, int64_t i, Bytes& in, Contents& contents) {
  const LinearParams& p = call.p;
  Product& own = call.own[static_cast<size_t>(i)];
  const int64_t columns = call.products[static_cast<size_t>(i)].columns;
  own.weight.resize(static_cast<size_t>(weight_bytes(p, columns)));
  own.result.assign(static_cast<size_t>(p.rows * columns), 7.0F);
  if (in.byte() % 2 == 0) own.bias.resize(static_cast<size_t>(columns));
  if (in.byte() % 2 == 0) own.residual.resize(own.result.size());
  contents.fill(own.bias), contents.fill(own.residual);
  if (!in_blocks(p.format)) {
    contents.fill(own.weight.data(), floats(p.format), columns * p.depth);
    return;
  }
  for (uint8_t& code : own.weight) code = static_cast<uint8_t>(contents.bits());
  const int64_t blocks = columns * ((p.depth + p.block - 1) / p.block);
  own.scales.resize(static_cast<size_t>(blocks * size_of(p.scale_type)));
  contents.fill(own.scales.data(), p.scale_type, blocks);
  const uint8_t kind = in.byte() % 3;
  if (kind == 1 && p.format == WeightFormat::kInt4) {
    own.zeros.resize(static_cast<size_t>(blocks));
    for (uint8_t& zero : own.zeros) zero = static_cast<uint8_t>(contents.below(17));
  } else if (kind == 2) {
    own.minimums.resize(static_cast<size_t>(blocks * 2));
    contents.fill(own.minimums.data(), DType::kFloat16, blocks);
  }
}

// A weight by definition, and the magnitude of its terms.
struct Weight {
  double value, size;
};

Weight weight(const Call& call, const Product& own, int64_t column, int64_t k) {
  const LinearParams& p = call.p;
  if (!in_blocks(p.format)) {
    const double value = element(own.weight.data(), floats(p.format), column * p.depth + k);
    return {value, std::abs(value)};
  }
  const int64_t blocks = (p.depth + p.block - 1) / p.block, block = column * blocks + k / p.block;
  const bool wide = p.format == WeightFormat::kInt8;
  const int64_t at = block * p.block + k % p.block;
  const uint8_t byte = own.weight[static_cast<size_t>(wide ? at : at / 2)];
  const int code = wide ? byte : at % 2 == 0 ? byte & 15 : byte >> 4;
  const double scale = element(own.scales.data(), p.scale_type, block);
  if (!own.minimums.empty()) {
    const double least = element(own.minimums.data(), DType::kFloat16, block);
    return {code * scale + least, code * std::abs(scale) + 2 * std::abs(least)};
  }
  const int zero = wide ? 128 : own.zeros.empty() ? 8 : own.zeros[static_cast<size_t>(block)];
  return {(code - zero) * scale, (code + zero) * std::abs(scale)};
}

// A row that is multiplied, and how far float32 may be from it. RMSNorm: the mean of squares has K roundings,
// of which the root halves the share; six more follow. SwiGLU: an exponent's rounding grows with its size;
// the exponential has two units, and six roundings follow.
std::vector<Weight> multiplied(const Call& call, int64_t r) {
  const LinearParams& p = call.p;
  std::vector<Weight> row;
  double squares = 0;
  for (int64_t k = 0; k < p.depth; ++k) {
    const auto x = static_cast<double>(call.input[static_cast<size_t>(r * p.depth + k)]);
    row.push_back({x, 0.0}), squares += x * x;
  }
  const auto depth = static_cast<double>(p.depth);
  for (size_t k = 0; k < row.size(); ++k) {
    const double x = row[k].value;
    if (p.norm != nullptr) {
      const double made =
          x / std::sqrt(squares / depth + static_cast<double>(p.epsilon)) * static_cast<double>(call.norm[k]);
      row[k] = {made, (depth / 2 + 6) * kUnit * std::abs(made)};
    } else if (p.gated != nullptr) {
      const double gate = static_cast<double>(call.gated[static_cast<size_t>(r * p.depth) + k]);
      const double made = x / (1 + std::exp(-x)) * gate;
      row[k] = {made, (2 * std::abs(x) + 10) * kUnit * std::abs(made)};
    }
  }
  return row;
}

// Whether a call may multiply codes with rows in fixed point.
bool in_fixed_point(const LinearParams& p) {
  const bool few = p.rows <= LinearParams::kFewRows && p.precision == Precision::kBFloat16;
  return in_blocks(p.format) && fixed16_products() && (p.precision == Precision::kFixed16 || few);
}

// Adds what fixed point may be off by: half a step of 1/32512 of the largest of 32 numbers, and roundings.
void add_steps(std::vector<Weight>& row) {
  constexpr size_t kSpan = 32;
  for (size_t first = 0; first < row.size(); first += kSpan) {
    const size_t end = std::min(row.size(), first + kSpan);
    double largest = 0;
    for (size_t k = first; k < end; ++k) largest = std::max(largest, std::abs(row[k].value));
    for (size_t k = first; k < end; ++k) row[k].size += largest * (0.5 / 32512 + 3 * kUnit);
  }
}

// One result by definition. A weight is rounded once or twice; K products, bias and residual are summed, each
// rounded by half a unit. In bfloat16 rows and weights are rounded too.
void check_result(const Call& call, const Product& own, int64_t columns, int64_t r, int64_t column) {
  const LinearParams& p = call.p;
  double result = 0, size = 0, error = 0;
  std::vector<Weight> row = multiplied(call, r);
  if (in_fixed_point(p)) add_steps(row);
  for (int64_t k = 0; k < p.depth; ++k) {
    const Weight other = weight(call, own, column, k), mine = row[static_cast<size_t>(k)];
    result += mine.value * other.value, size += std::abs(mine.value) * other.size;
    error += mine.size * other.size;
  }
  const bool half =
      p.precision == Precision::kBFloat16 && p.rows > LinearParams::kFewRows && bfloat16_products();
  error += half ? 2 * kHalfUnit * (1 + kHalfUnit) * size : 0.0;
  for (const double more :
       {own.bias.empty() ? 0.0F : own.bias[static_cast<size_t>(column)],
        own.residual.empty() ? 0.0F : own.residual[static_cast<size_t>(r * columns + column)]}) {
    result += more, size += std::abs(more);
  }
  const double bound = (static_cast<double>(p.depth) + 6) * kUnit * size + error + 0x1p-120;
  check(std::abs(static_cast<double>(own.result[static_cast<size_t>(r * columns + column)]) - result) <=
        bound);
}

// A row of few alone has the bits that it has among others.
void check_alone(const Call& call, int64_t r) {
  Call one = call;
  one.p.rows = 1;
  const auto cut = [&](std::vector<float>& values, int64_t width) {
    if (values.empty()) return;
    const auto begin = values.begin() + r * width;
    values = std::vector<float>(begin, begin + width);
  };
  cut(one.input, call.p.depth), cut(one.gated, call.p.depth);
  for (size_t i = 0; i < one.own.size(); ++i) {
    cut(one.own[i].residual, one.products[i].columns), cut(one.own[i].result, one.products[i].columns);
    std::fill(one.own[i].result.begin(), one.own[i].result.end(), 7.0F);
  }
  one.point(0);
  run_cpu(one.p);
  for (size_t i = 0; i < one.own.size(); ++i) {
    const int64_t columns = one.products[i].columns;
    const float* among = call.own[i].result.data() + r * columns;
    check(same_numbers(one.own[i].result.data(), among, static_cast<size_t>(columns)));
  }
}

void run(Bytes& in) {
  Call call;
  LinearParams& p = call.p;
  const uint8_t shape = in.byte();
  p.rows = shape % 4 == 0 ? in.number(0, 70) : in.number(0, 18);
  p.depth = shape % 32 == 1 ? in.number(1000, 1030) : in.number(1, 150);
  p.format = static_cast<WeightFormat>(in.byte() % 32 == 0 ? in.byte() : in.byte() % 5);
  const bool blocks = in_blocks(p.format);
  p.block = in.byte() % 32 == 0 ? in.number(200) : blocks ? 32 * (1 + in.byte() % 4) : 0;
  p.scale_type = static_cast<DType>(in.byte() % 32 == 0 ? in.byte() : in.byte() % 2);
  p.precision = static_cast<Precision>(in.byte() % 32 == 0 ? in.byte() : in.byte() % 3);
  p.epsilon = in.byte() == 1 ? -1.0F : 1e-5F;
  p.threads = static_cast<int>(in.number(3)), p.count = in.number(0, 3);
  bool huge = elements({p.rows, p.depth}) < 0 || p.count < 0 || p.count > 3 || p.depth < 1;
  for (int64_t i = 0; i < (huge ? 0 : p.count); ++i) {
    call.products.push_back({.columns = in.number(0, 70)});
    const int64_t columns = call.products.back().columns;
    huge = huge || elements({columns, std::max(p.depth, p.block)}) < 0 || elements({p.rows, columns}) < 0;
  }
  const auto format = static_cast<int32_t>(p.format), scales = static_cast<int32_t>(p.scale_type);
  huge =
      huge || format > 4 || (blocks && (p.block < 32 || scales > 1));  // contents of no format: checks only
  const int missing = in.byte() % 32 == 0 ? in.byte() % 6 : 0;
  Contents contents(in, in.byte() % 4 != 0);
  if (!huge) {
    call.own.resize(call.products.size());
    call.input.resize(static_cast<size_t>(p.rows * p.depth)), contents.fill(call.input);
    const uint8_t before = in.byte();
    if (before % 4 == 0) call.norm.resize(static_cast<size_t>(p.depth)), contents.fill(call.norm);
    if (before % 4 == 1 || before == 8) call.gated.resize(call.input.size()), contents.fill(call.gated);
    for (int64_t i = 0; i < p.count; ++i) fill(call, i, in, contents);
  }
  if (!huge) call.point(missing);
  if (huge && p.count == static_cast<int64_t>(call.products.size())) p.products = call.products.data();
  Call other = call;
  const std::string text = refusal([&] { huge ? validate(p) : run_cpu(p); });
  if (huge || !text.empty()) {
    check(text.empty() || text.rfind("[linear] ", 0) == 0 || text == "out of memory");
    for (size_t i = 0; i < call.own.size(); ++i) check(same_bytes(call.own[i].result, other.own[i].result));
    return;
  }
  other.point(0), other.p.threads = p.threads == 1 ? 3 : 1;
  run_cpu(other.p);
  for (size_t i = 0; i < call.own.size(); ++i) {
    check(same_numbers(call.own[i].result, other.own[i].result));
    const int64_t columns = call.products[i].columns;
    for (int64_t n = 0; contents.tame && n < kCompared && p.rows * columns > 0; ++n) {
      check_result(call, call.own[i], columns, contents.below(p.rows), contents.below(columns));
    }
  }
  if (p.rows > 0 && p.rows <= LinearParams::kFewRows) check_alone(call, contents.below(p.rows));
}

}  // namespace
}  // namespace vlkv::fuzz

extern "C" int vlkv_fuzz_linear(const uint8_t* data, size_t size) {
  vlkv::fuzz::Bytes in(data, size);
  vlkv::fuzz::run(in);
  return 0;
}
