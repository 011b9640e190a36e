// The C entry points of the CUDA backend.
#include "backend.h"
#include "score_case.h"
#include "vlkv/c_api.h"

namespace vlkv::test::score {
namespace {

TEST(CudaCApi, ScoresAndRefuses) {
  Random random(130);
  const Case c(random, {2, 4, 2, 5, 90, 32}, DType::kFloat16, DType::kFloat16, 1.0F, false);
  Result right, made;
  run_emulated(params(c, right));
  const ScoreParams p = params(c, made);
  vlkv_score_params given{};
  given.batch = 2, given.query_heads = 4, given.kv_heads = 2, given.rows = 5, given.slots = 90;
  given.head_dim = 32, given.threshold = p.threshold;
  const auto tensor = [](const ConstView& v, const Tensor& t) {
    return vlkv_tensor{const_cast<void*>(v.data),
                       t.bytes().size(),
                       static_cast<int32_t>(v.dtype),
                       v.stride_b,
                       v.stride_h,
                       v.stride_s};
  };
  given.query = tensor(p.query, c.query), given.key = tensor(p.key, c.key);
  given.row_position = c.position.data(), given.row_position_bytes = c.position.size() * 8;
  given.score = made.score.data(), given.score_bytes = made.score.size() * 4;
  given.pairs = made.pairs.data(), given.below = made.below.data(), given.counts_bytes = 16;
  given.sparsity = made.sparsity.data(), given.sparsity_bytes = 8;

  EXPECT_EQ(vlkv_has_cuda(), 1);
  const uint64_t size = vlkv_score_cuda_workspace(&given);
  EXPECT_EQ(size, cuda_workspace_size(p));
  EXPECT_EQ(vlkv_score_cuda_workspace(nullptr), UINT64_MAX);
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(256, size), std::free);
  char text[200];
  ASSERT_EQ(vlkv_score_cuda(&given, workspace.get(), size, nullptr, text, sizeof text), VLKV_OK) << text;
  EXPECT_EQ(made.score, right.score);
  EXPECT_EQ(made.below, right.below);
  EXPECT_EQ(made.sparsity, right.sparsity);

  EXPECT_EQ(vlkv_score_cuda(&given, workspace.get(), size - 1, nullptr, text, sizeof text),
            VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(std::string(text), "[score] workspace has " + std::to_string(size - 1) + " bytes, less than " +
                                   std::to_string(size));
  given.sparsity_bytes = 7;
  EXPECT_EQ(vlkv_score_cuda(&given, workspace.get(), size, nullptr, text, sizeof text),
            VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(vlkv_evict_cuda(nullptr, nullptr, 0, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
  EXPECT_EQ(vlkv_evict_cuda_workspace(nullptr), UINT64_MAX);
}

TEST(CudaCApi, AttendsAndRefuses) {
  Random random(131);
  std::vector<uint16_t> query(2 * 64, 0x3c00), row(64, 0x3c00), keys(9 * 64, 0x3c00), values(9 * 64, 0x4000);
  std::vector<uint16_t> result(2 * 64, 0xffff);
  const int64_t length = 3, count = 1;
  const auto tensor = [](std::vector<uint16_t>& of, int64_t slots) {
    return vlkv_tensor{of.data(), of.size() * 2, VLKV_FLOAT16, static_cast<int64_t>(of.size()), slots * 64,
                       64};
  };
  vlkv_attend_params given{};
  given.batch = 1, given.query_heads = 2, given.kv_heads = 1, given.rows = 1, given.slots = 9,
  given.head_dim = 64;
  given.query = tensor(query, 1), given.key = given.value = tensor(row, 1), given.result = tensor(result, 1);
  given.key_cache = tensor(keys, 9), given.value_cache = tensor(values, 9);
  given.length = &length, given.count = &count, given.lengths_bytes = 8;
  char text[200];
  EXPECT_EQ(vlkv_attend_cuda_workspace(&given), 0U);
  EXPECT_EQ(vlkv_attend_cuda_workspace(nullptr), UINT64_MAX);
  ASSERT_EQ(vlkv_attend_cuda(&given, nullptr, 0, nullptr, text, sizeof text), VLKV_OK) << text;
  for (const uint16_t x : result) EXPECT_EQ(x, 0x3f00);  // the mean of 2, 2, 2 and 1
  EXPECT_EQ(values[3 * 64], 0x3c00);
  given.value_cache.bytes -= 2;
  EXPECT_EQ(vlkv_attend_cuda(&given, nullptr, 0, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
  EXPECT_NE(std::string(text).find("value_cache has 1150 bytes"), std::string::npos) << text;
  EXPECT_EQ(vlkv_attend_cuda(nullptr, nullptr, 0, nullptr, text, sizeof text), VLKV_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace vlkv::test::score
