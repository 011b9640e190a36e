// Measures Linear against a read of its weights (few rows) and the processor's multiply-add rate (many rows).
// The two of a pair take turns; figures are medians. Prints one JSON object per line.
//   vlkv_bench_linear [threads [format [rows]]]
// With a format, or a format and a number of rows, only those are measured.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"
#include "vlkv/linear.h"
#include "vlkv/read_words.h"
#include "vlkv/runtime.h"

namespace {

// One thread is timed by its CPU clock, so that other processes matter less; several by the wall clock.
double now() {
  timespec time{};
  clock_gettime(vlkv::threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds(auto&& body) {
  const double start = now();
  body();
  return now() - start;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Medians of two by turns, and of their ratio.
struct Pair {
  double first, second, ratio;
};

Pair by_turns(int pairs, auto&& first, auto&& second) {
  std::vector<double> a, b, ratio;
  for (int i = -1; i < pairs; ++i) {
    const double x = seconds(first), y = seconds(second);
    if (i >= 0) a.push_back(x), b.push_back(y), ratio.push_back(x / y);
  }
  return {median(a), median(b), median(ratio)};
}

const char* name(vlkv::WeightFormat format) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "int8", "int4"};
  return kNames[static_cast<int>(format)];
}

// Contiguous matrices [columns, depth] that together exceed every cache, as a model's do.
struct Model {
  vlkv::LinearParams p;
  vlkv::cpu::Array<char> weights;
  vlkv::cpu::Array<float> scales, input, result;
  std::vector<vlkv::LinearProduct> products;
  int64_t bytes = 0, weight_bytes = 0;  // with the scales, and without

  Model(vlkv::WeightFormat format, int64_t rows, int64_t depth, int64_t columns, int64_t count) {
    p.format = format, p.rows = rows, p.depth = depth;
    const bool blocks = format >= vlkv::WeightFormat::kInt8;
    if (blocks) p.block = 32;
    const int64_t own = vlkv::weight_bytes(p, columns), groups = blocks ? columns * (depth / 32) : 0;
    weight_bytes = count * own, bytes = weight_bytes + count * groups * 4;
    weights = vlkv::cpu::allocate<char>(count * own);
    std::fill_n(weights.get(), count * own, char{0x11});
    scales = vlkv::cpu::allocate<float>(count * groups);
    std::fill_n(scales.get(), count * groups, 0.01F);
    input = vlkv::cpu::allocate<float>(rows * depth);
    std::fill_n(input.get(), rows * depth, 0.5F);
    result = vlkv::cpu::allocate<float>(rows * columns);
    for (int64_t i = 0; i < count; ++i) {
      products.push_back({.columns = columns,
                          .weight = weights.get() + i * own,
                          .scales = blocks ? scales.get() + i * groups : nullptr,
                          .result = result.get()});
    }
    p.input = input.get(), p.count = 1;
  }

  void run() {
    for (const vlkv::LinearProduct& product : products) {
      p.products = &product;
      vlkv::run_cpu(p);
    }
  }
};

void few(vlkv::WeightFormat format, int64_t rows, vlkv::Precision precision, int threads) {
  Model model(format, rows, 1024, 4096, 64);
  model.p.precision = precision;
  const Pair pair = by_turns(
      9, [&] { model.run(); },
      [&] {
        vlkv::read_words(reinterpret_cast<const uint32_t*>(model.weights.get()), model.weight_bytes / 4,
                         threads);
      });
  std::printf(
      "{\"op\": \"linear\", \"simd\": \"%s\", \"threads\": %d, \"format\": \"%s\", \"rows\": %ld, "
      "\"precision\": %d, \"ms\": %.2f, "
      "\"gb_s\": %.1f, \"of_read\": %.2f}\n",
      vlkv::simd_name(vlkv::simd()), threads, name(format), rows, static_cast<int>(precision),
      pair.first * 1e3, static_cast<double>(model.bytes) / pair.first * 1e-9,
      pair.ratio * static_cast<double>(model.weight_bytes) / static_cast<double>(model.bytes));
}

void many(vlkv::WeightFormat format, int64_t rows, vlkv::Precision precision, int threads) {
  Model model(format, rows, 1024, 2048, 2);
  model.p.precision = precision;
  const vlkv::cpu::Kernels& kernels = vlkv::cpu::kernels();
  int64_t flops = 0;
  const Pair pair = by_turns(
      9, [&] { model.run(); },
      [&] {
        vlkv::cpu::parallel_for(threads, 64, 1, [&](int, int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) kernels.multiply_adds(1 << 15);
        });
      });
  flops = 64 * (1 << 15) * kernels.multiply_adds(1);
  const double work = 2.0 * 2 * static_cast<double>(rows) * 1024 * 2048;
  const double peak = static_cast<double>(flops) / pair.second;
  std::printf(
      "{\"op\": \"linear\", \"simd\": \"%s\", \"threads\": %d, \"format\": \"%s\", \"rows\": %ld, "
      "\"precision\": "
      "%d, "
      "\"ms\": %.2f, \"gflops\": %.1f, \"of_peak\": %.2f}\n",
      vlkv::simd_name(vlkv::simd()), threads, name(format), rows, static_cast<int>(precision),
      pair.first * 1e3, work / pair.first * 1e-9, work / pair.first / peak);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : vlkv::threads();
  vlkv::set_threads(threads);
  const auto wanted = [&](vlkv::WeightFormat format, int64_t rows) {
    return (argc <= 2 || std::strcmp(argv[2], name(format)) == 0) &&
           (argc <= 3 || std::atoi(argv[3]) == rows);
  };
  const auto offered = [](vlkv::WeightFormat format, vlkv::Precision precision) {
    if (precision == vlkv::Precision::kBFloat16) return vlkv::bfloat16_products();
    if (precision == vlkv::Precision::kFixed16)
      return format >= vlkv::WeightFormat::kInt8 && vlkv::fixed16_products();
    return true;
  };
  for (int i = 0; i < 5; ++i) {
    const auto format = static_cast<vlkv::WeightFormat>(i);
    for (const int64_t rows : {1, 2, 4, 8, 16}) {
      if (!wanted(format, rows)) continue;
      for (const vlkv::Precision precision : {vlkv::Precision::kFloat32, vlkv::Precision::kFixed16}) {
        if (offered(format, precision)) few(format, rows, precision, threads);
      }
    }
  }
  for (const int64_t rows : {32, 512}) {
    for (int i = 0; i < 5; ++i) {
      const auto format = static_cast<vlkv::WeightFormat>(i);
      if (!wanted(format, rows)) continue;
      for (const vlkv::Precision precision :
           {vlkv::Precision::kFloat32, vlkv::Precision::kBFloat16, vlkv::Precision::kFixed16}) {
        if (offered(format, precision)) many(format, rows, precision, threads);
      }
    }
  }
}
