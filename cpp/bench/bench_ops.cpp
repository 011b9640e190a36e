// Measures Score against the processor's multiply-add rate, Evict against memcpy, and Attend against a read
// of its cache. Prints one JSON object per line.
//   vlkv_bench [threads [attend]]     attend: Attend with one token alone, on so many threads
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"
#include "vlkv/attend.h"
#include "vlkv/evict.h"
#include "vlkv/read_words.h"
#include "vlkv/runtime.h"
#include "vlkv/score.h"

namespace {

// One thread is timed by its CPU clock, so that other processes matter less; several by the wall clock.
double now(int threads) {
  timespec time{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds(int threads, int repeats, auto&& body) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) {
    const double start = now(threads);
    body();
    best = std::min(best, now(threads) - start);
  }
  return best;
}

std::vector<float> random_floats(int64_t count) {
  std::minstd_rand engine(1);
  std::uniform_real_distribution<float> draw(-1.0F, 1.0F);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(engine);
  return values;
}

// The rate of independent multiply-adds in registers, which matrix products cannot exceed.
double peak_gflops(int threads) {
  const vlkv::cpu::Kernels& kernels = vlkv::cpu::kernels();
  constexpr int64_t kRounds = 200;
  int64_t flops = 0;
  const auto run = [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.multiply_adds(1 << 18);
  };
  flops = kRounds * kernels.multiply_adds(1);
  const double time = seconds(threads, 5, [&] { vlkv::cpu::parallel_for(threads, kRounds, 1, run); });
  return static_cast<double>(flops) * (1 << 18) / time * 1e-9;
}

void bench_score(int64_t query_heads, int64_t kv_heads, int64_t dim, int64_t slots, int64_t rows,
                 vlkv::DType type, int threads, double peak) {
  const std::vector<float> query = random_floats(query_heads * rows * dim);
  const std::vector<float> key = random_floats(kv_heads * slots * dim);
  std::vector<uint16_t> half(type == vlkv::DType::kFloat32 ? 0 : key.size());
  if (!half.empty())
    vlkv::cpu::kernels().from_float(key.data(), type, half.data(), static_cast<int64_t>(key.size()));
  std::vector<int32_t> position(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i)
    position[static_cast<size_t>(i)] = static_cast<int32_t>(slots - rows + i);
  std::vector<float> score(static_cast<size_t>(kv_heads * slots));
  vlkv::ScoreParams p;
  p.batch = 1, p.query_heads = query_heads, p.kv_heads = kv_heads, p.rows = rows, p.slots = slots,
  p.head_dim = dim;
  p.query = {query.data(), vlkv::DType::kFloat32, 0, rows * dim, dim};
  p.key = {half.empty() ? static_cast<const void*>(key.data()) : half.data(), type, 0, slots * dim, dim};
  p.row_position = position.data(), p.row_position_type = vlkv::IndexType::kInt32;
  p.score = score.data(), p.score_stride_h = slots, p.score_stride_b = kv_heads * slots;
  p.threads = threads;
  const double time = seconds(threads, 5, [&] { vlkv::run_cpu(p); });
  const double gflops = 2e-9 * static_cast<double>(query_heads * rows * slots * dim) / time;
  std::printf(
      "{\"op\": \"score\", \"simd\": \"%s\", \"threads\": %d, \"dtype\": %d, \"heads\": [%ld, %ld], \"dim\": "
      "%ld, "
      "\"slots\": %ld, \"rows\": %ld, \"ms\": %.2f, \"gflops\": %.1f, \"of_peak\": %.3f}\n",
      vlkv::simd_name(vlkv::simd()), threads, static_cast<int>(type), query_heads, kv_heads, dim, slots, rows,
      time * 1e3, gflops, gflops / peak);
}

void bench_evict(int64_t heads, int64_t dim, int64_t slots, int64_t keep, bool merge, int threads) {
  const std::vector<float> key = random_floats(heads * slots * dim);
  const std::vector<float> value = key;
  const std::vector<float> score = random_floats(heads * slots);
  std::vector<float> key_out(static_cast<size_t>(heads * keep * dim)), value_out = key_out;
  std::vector<int32_t> position(static_cast<size_t>(heads * keep));
  const int64_t sinks = 0, recent = keep / 10;
  vlkv::EvictParams p;
  p.batch = 1, p.kv_heads = heads, p.slots = slots, p.head_dim = dim, p.capacity = keep;
  p.key = {key.data(), vlkv::DType::kFloat32, 0, slots * dim, dim};
  p.value = {value.data(), vlkv::DType::kFloat32, 0, slots * dim, dim};
  p.key_out = {key_out.data(), vlkv::DType::kFloat32, 0, keep * dim, dim};
  p.value_out = {value_out.data(), vlkv::DType::kFloat32, 0, keep * dim, dim};
  p.score = score.data(), p.score_stride_h = slots;
  p.length = &slots, p.keep = &keep, p.sinks = &sinks, p.recent = &recent;
  p.position_out = position.data(), p.position_stride_h = keep;
  p.merge = merge ? vlkv::Merge::kNearestMean : vlkv::Merge::kNone;
  p.threads = threads;
  const double time = seconds(threads, 20, [&] { vlkv::run_cpu(p); });

  // The floor: memcpy of the same rows, or of as many contiguous bytes, and one read of the scores.
  volatile float sink = 0.0F;
  const auto floor = [&](bool together) {
    return seconds(threads, 20, [&] {
      vlkv::cpu::parallel_for(threads, heads, 1, [&](int, int64_t h, int64_t) {
        const int64_t run = together ? keep : 1;
        for (int64_t i = 0; i < keep; i += run) {
          const int64_t from =
              (h * slots + (together ? 0 : position[static_cast<size_t>(h * keep + i)])) * dim;
          const auto at = static_cast<size_t>((h * keep + i) * dim),
                     bytes = static_cast<size_t>(run * dim * 4);
          std::memcpy(key_out.data() + at, key.data() + from, bytes);
          std::memcpy(value_out.data() + at, value.data() + from, bytes);
        }
        float total[16] = {};
        for (int64_t i = 0; i + 16 <= slots; i += 16) {
          for (int64_t lane = 0; lane < 16; ++lane)
            total[lane] += score[static_cast<size_t>(h * slots + i + lane)];
        }
        sink = sink + total[0];
      });
    });
  };
  const double rows = floor(false), block = floor(true);
  std::printf(
      "{\"op\": \"evict\", \"merge\": %s, \"threads\": %d, \"heads\": %ld, \"dim\": %ld, \"slots\": %ld, "
      "\"keep\": %ld, \"ms\": %.3f, \"memcpy_rows_ms\": %.3f, \"ratio\": %.2f, \"memcpy_block_ms\": %.3f}\n",
      merge ? "true" : "false", threads, heads, dim, slots, keep, time * 1e3, rows * 1e3, time / rows,
      block * 1e3);
}

// The caches of all layers of a model take turns, so that none is in the processor's caches.
void bench_attend(int64_t query_heads, int64_t kv_heads, int64_t dim, int64_t slots, vlkv::DType type,
                  int64_t layers, int threads) {
  const std::vector<float> query = random_floats(query_heads * dim), added = random_floats(kv_heads * dim);
  std::vector<float> result(query.size());
  const int64_t row = vlkv::row_bytes(type, dim), bytes = kv_heads * slots * row, words = bytes / 4;
  std::vector<vlkv::cpu::Array<char>> caches;
  for (int64_t i = 0; i < 2 * layers; ++i) {
    caches.push_back(vlkv::cpu::allocate<char>(bytes));
    const std::vector<float> numbers = random_floats(dim);
    for (int64_t slot = 0; slot < kv_heads * slots; ++slot) {
      vlkv::cpu::kernels().from_float(numbers.data(), type, caches.back().get() + slot * row, dim);
    }
  }
  const int32_t last = static_cast<int32_t>(slots - 1);
  vlkv::AttendParams p;
  p.batch = 1, p.query_heads = query_heads, p.kv_heads = kv_heads, p.slots = slots, p.head_dim = dim;
  p.query = query.data(), p.key = added.data(), p.value = added.data(), p.last = &last, p.cache = type;
  p.result = result.data(), p.threads = threads;
  const auto attend = [&] {
    for (size_t i = 0; i < caches.size(); i += 2) {
      p.key_cache = caches[i].get(), p.value_cache = caches[i + 1].get();
      vlkv::run_cpu(p);
    }
  };
  volatile uint32_t sink = 0;
  const auto read = [&] {
    for (const auto& cache : caches) {
      sink = sink + vlkv::read_words(reinterpret_cast<const uint32_t*>(cache.get()), words, threads);
    }
  };
  const double time = seconds(threads, 10, attend), floor = seconds(threads, 10, read);
  const auto total = static_cast<double>(2 * layers * bytes);
  std::printf(
      "{\"op\": \"attend\", \"simd\": \"%s\", \"threads\": %d, \"dtype\": %d, \"heads\": [%ld, %ld], "
      "\"dim\": %ld, "
      "\"slots\": %ld, \"ms\": %.3f, \"read_ms\": %.3f, \"ratio\": %.2f, \"GB/s\": %.1f}\n",
      vlkv::simd_name(vlkv::simd()), threads, static_cast<int>(type), query_heads, kv_heads, dim, slots,
      time * 1e3 / static_cast<double>(layers), floor * 1e3 / static_cast<double>(layers), time / floor,
      total / time * 1e-9);
}

void bench_caches(int threads) {
  for (const auto type : {vlkv::DType::kFloat32, vlkv::DType::kBFloat16, vlkv::DType::kInt8}) {
    for (const int64_t slots : {3277, 8192, 32768}) {
      bench_attend(32, 8, 128, slots, type, 4, threads);
      bench_attend(12, 4, 64, slots, type, 12, threads);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int most = argc > 1 ? std::atoi(argv[1]) : vlkv::threads();
  if (argc > 2 && std::strcmp(argv[2], "attend") == 0) {
    bench_caches(most);
    return 0;
  }
  for (int threads = 1; threads <= most; threads = threads < most ? most : most + 1) {
    const double peak = peak_gflops(threads);
    std::printf("{\"op\": \"peak\", \"threads\": %d, \"clock\": \"%s\", \"gflops\": %.1f}\n", threads,
                threads == 1 ? "cpu" : "wall", peak);
    for (const int64_t dim : {64, 128})
      bench_score(32, 8, dim, 32768, 64, vlkv::DType::kFloat32, threads, peak);
    for (const auto type : {vlkv::DType::kFloat16, vlkv::DType::kBFloat16}) {
      bench_score(32, 8, 128, 32768, 64, type, threads, peak);
    }
    bench_score(32, 32, 128, 4096, 512, vlkv::DType::kFloat32, threads, peak);
    bench_score(32, 8, 128, 32768, 1, vlkv::DType::kFloat32, threads, peak);
    bench_score(12, 4, 64, 2048, 32, vlkv::DType::kFloat32, threads, peak);
    bench_evict(8, 128, 32768, 3277, false, threads);
    bench_evict(8, 128, 32768, 3277, true, threads);
    bench_evict(32, 128, 4096, 410, false, threads);
    bench_caches(threads);
  }
}
