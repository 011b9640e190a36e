// Threads, instruction sets, and the C entry points.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "cases.h"
#include "cpu/thread_pool.h"
#include "vlkv/c_api.h"
#include "vlkv/runtime.h"

namespace vlkv::test {
namespace {

int64_t sum_in_parallel(int threads, int64_t count, int64_t grain) {
  std::atomic<int64_t> sum{0};
  cpu::parallel_for(threads, count, grain, [&](int worker, int64_t begin, int64_t end) {
    EXPECT_LT(worker, threads);
    EXPECT_LE(end - begin, grain);
    for (int64_t i = begin; i < end; ++i) sum += i + 1;
  });
  return sum;
}

TEST(Threads, EachPieceOnce) {
  for (int round = 0; round < 200; ++round) {
    for (const int threads : {1, 2, 3, 8}) EXPECT_EQ(sum_in_parallel(threads, 100, 1 + round % 7), 5050);
  }
  EXPECT_EQ(sum_in_parallel(4, 0, 1), 0);
}

TEST(Threads, LoopsInsideLoopsAndBesideThem) {
  std::atomic<int64_t> sum{0};
  cpu::parallel_for(4, 8, 1, [&](int, int64_t, int64_t) { sum += sum_in_parallel(4, 10, 1); });
  EXPECT_EQ(sum, 8 * 55);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([] {
      for (int round = 0; round < 100; ++round) EXPECT_EQ(sum_in_parallel(3, 50, 2), 1275);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(Threads, AChildOfForkHasItsOwn) {
  EXPECT_EQ(sum_in_parallel(3, 100, 1), 5050);
  const pid_t child = fork();
  if (child == 0) _exit(sum_in_parallel(3, 100, 1) == 5050 ? 0 : 1);
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(Runtime, Settings) {
  set_threads(3);
  EXPECT_EQ(threads(), 3);
  set_threads(0);
  EXPECT_GE(threads(), 1);
  EXPECT_THROW(set_threads(-1), InvalidArgument);
  EXPECT_THROW(set_threads(1025), InvalidArgument);
  const Simd before = simd();
  set_simd(Simd::kPortable);
  EXPECT_EQ(simd(), Simd::kPortable);
  EXPECT_STREQ(simd_name(simd()), "portable");
  if (!simd_available(Simd::kAvx512)) {
    EXPECT_THROW(set_simd(Simd::kAvx512), Unavailable);
  }
  set_simd(before);
  EXPECT_STREQ(version(), "0.1.0");
}

struct CScore {
  float query[2 * 3 * 4] = {}, key[2 * 5 * 4] = {}, score[2 * 5] = {};
  int64_t position[3] = {4, 2, -1}, pairs[1] = {}, below[1] = {};
  vlkv_score_params p{};

  CScore() {
    p.batch = 1, p.query_heads = 2, p.kv_heads = 2, p.rows = 3, p.slots = 5, p.head_dim = 4;
    p.query = {query, sizeof(query), VLKV_FLOAT32, 24, 12, 4};
    p.key = {key, sizeof(key), VLKV_FLOAT32, 40, 20, 4};
    p.row_position = position, p.row_position_bytes = sizeof(position);
    p.threshold = 0.01F, p.score = score, p.score_bytes = sizeof(score);
    p.pairs = pairs, p.below = below, p.counts_bytes = 8;
  }
};

TEST(CApi, Score) {
  CScore c;
  char message[200];
  ASSERT_EQ(vlkv_score_cpu(&c.p, message, sizeof(message)), VLKV_OK);
  EXPECT_EQ(c.pairs[0], 16);
  EXPECT_NEAR(c.score[0], 1.0 / 5 + 1.0 / 3, 1e-6);
  EXPECT_NEAR(c.score[4], 1.0 / 5, 1e-6);
}

TEST(CApi, RefusesWhatLeavesItsBuffer) {
  const auto code = [](auto&& change, const char* text) {
    CScore c;
    change(c);
    char message[200] = "";
    const int result = vlkv_score_cpu(&c.p, message, sizeof(message));
    EXPECT_NE(std::strstr(message, text), nullptr) << message;
    return result;
  };
  EXPECT_EQ(code([](CScore& c) { c.p.key.bytes -= 1; }, "[score] key has 159 bytes"), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(code([](CScore& c) { c.p.query.stride_h = 1 << 20; }, "[score] query has"),
            VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(code([](CScore& c) { c.p.query.stride_b = -1; }, "negative"), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(code([](CScore& c) { c.p.score_bytes = 39; }, "[score] score has 39"), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(code([](CScore& c) { c.p.slots = 2147483646; }, "[score]"), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(code([](CScore& c) { c.p.key.dtype = 3; }, "dtype 3"), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(vlkv_score_cpu(nullptr, nullptr, 0), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(vlkv_evict_cpu(nullptr, nullptr, 0), VLKV_INVALID_ARGUMENT);
  char small[8];
  EXPECT_EQ(vlkv_evict_cpu(nullptr, small, sizeof(small)), VLKV_INVALID_ARGUMENT);
  EXPECT_STREQ(small, "[evict]");
}

TEST(CApi, Evict) {
  float key[2 * 6 * 2], key_out[2 * 3 * 2] = {}, value_out[2 * 3 * 2] = {}, score[12];
  for (int i = 0; i < 24; ++i) key[i] = static_cast<float>(i);
  for (int i = 0; i < 12; ++i) score[i] = static_cast<float>(i % 6 == 4 ? 9 : 1);
  const int64_t length = 6, keep = 3, sinks = 1, recent = 1;
  int32_t position[6] = {};
  vlkv_evict_params p{};
  p.batch = 1, p.kv_heads = 2, p.slots = 6, p.head_dim = 2, p.capacity = 3;
  p.key = p.value = {key, sizeof(key), VLKV_FLOAT32, 24, 12, 2};
  p.key_out = {key_out, sizeof(key_out), VLKV_FLOAT32, 12, 6, 2};
  p.value_out = {value_out, sizeof(value_out), VLKV_FLOAT32, 12, 6, 2};
  p.score = score, p.score_bytes = sizeof(score);
  p.length = &length, p.keep = &keep, p.sinks = &sinks, p.recent = &recent, p.lengths_bytes = 8;
  p.position_out = position, p.position_bytes = sizeof(position);
  p.per_head = 1, p.zero_tail = 1;
  char message[200] = "";
  ASSERT_EQ(vlkv_evict_cpu(&p, message, sizeof(message)), VLKV_OK) << message;
  EXPECT_EQ(position[1], 4);
  EXPECT_EQ(key_out[2], 8.0F);
  p.key_out.stride_h = 4;
  EXPECT_EQ(vlkv_evict_cpu(&p, message, sizeof(message)), VLKV_INVALID_ARGUMENT);
  EXPECT_STREQ(message, "[evict] key_out's rows overlap");
}

}  // namespace
}  // namespace vlkv::test
