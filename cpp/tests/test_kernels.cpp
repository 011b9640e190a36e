// Conversions, exactly, for every 16-bit number; and rounding against the nearest of the two neighbours.
#include <bit>
#include <cmath>

#include "cases.h"
#include "vlkv/read_words.h"

namespace vlkv::test {
namespace {

TEST(Kernels, WidensEvery16BitNumber) {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  for (const NamedKernels& kernels : all_kernels()) {
    std::vector<float> wide(bits.size());
    for (const DType type : {DType::kFloat16, DType::kBFloat16}) {
      kernels.table->to_float(bits.data(), type, wide.data(), 65536);
      for (size_t i = 0; i < bits.size(); ++i) {
        const double expected =
            type == DType::kFloat16 ? half_to_double(bits[i]) : bfloat16_to_double(bits[i]);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(wide[i])) << kernels.name << " " << i;
        } else {
          ASSERT_EQ(static_cast<double>(wide[i]), expected) << kernels.name << " " << i;
          ASSERT_EQ(std::signbit(wide[i]), i >= 0x8000) << kernels.name << " " << i;
        }
      }
      std::vector<uint16_t> back(bits.size());
      kernels.table->from_float(wide.data(), type, back.data(), 65536);
      for (size_t i = 0; i < bits.size(); ++i) {
        if (std::isnan(wide[i])) {
          ASSERT_TRUE(
              std::isnan(type == DType::kFloat16 ? half_to_double(back[i]) : bfloat16_to_double(back[i])));
        } else {
          ASSERT_EQ(back[i], bits[i]) << kernels.name;
        }
      }
    }
  }
}

TEST(Kernels, NarrowsToTheNearestEven) {
  Random random(1);
  for (const NamedKernels& kernels : all_kernels()) {
    for (int i = 0; i < 20000; ++i) {
      // Any bit pattern, and the exact halfway points between two halves.
      auto bits = static_cast<uint32_t>(random.integer(0, 0xffffffffLL));
      if (i % 4 == 0) bits = (bits & 0xffffe000U) | 0x1000U;
      if (i % 4 == 1) bits = (bits & 0xffff0000U) | 0x8000U;
      if (i % 4 == 2) bits = 0x33000000U + static_cast<uint32_t>(random.integer(0, 0x06000000));
      const auto value = std::bit_cast<float>(bits);
      for (const DType type : {DType::kFloat16, DType::kBFloat16}) {
        const auto widen = type == DType::kFloat16 ? half_to_double : bfloat16_to_double;
        uint16_t got;
        kernels.table->from_float(&value, type, &got, 1);
        if (std::isnan(value)) {
          ASSERT_TRUE(std::isnan(widen(got))) << kernels.name << " " << bits;
          continue;
        }
        ASSERT_EQ(std::signbit(value), got >= 0x8000);
        const int magnitude = got & 0x7fff, infinity = type == DType::kFloat16 ? 0x7c00 : 0x7f80;
        // Overflow starts half a step past the largest number: infinity stands in for the next power of two.
        const auto number = [&](int n) {
          return n == infinity ? 2.0 * std::ldexp(1.0, type == DType::kFloat16 ? 15 : 127)
                               : widen(static_cast<uint16_t>(n));
        };
        if (std::isinf(value)) {
          ASSERT_EQ(magnitude, infinity);
          continue;
        }
        const double exact = std::fabs(static_cast<double>(value));
        const double error =
            exact > number(infinity) && magnitude == infinity ? 0 : std::fabs(number(magnitude) - exact);
        for (const int other : {magnitude - 1, magnitude + 1}) {
          if (other < 0 || other > infinity) continue;
          const double other_error = std::fabs(number(other) - exact);
          ASSERT_TRUE(error < other_error || (error == other_error && magnitude % 2 == 0))
              << kernels.name << " " << std::hexfloat << value << " became " << number(magnitude);
        }
      }
    }
  }
}

TEST(Kernels, TailsOfEveryLengthStayInside) {
  for (const NamedKernels& kernels : all_kernels()) {
    for (int64_t count = 0; count < 40; ++count) {
      std::vector<float> from(static_cast<size_t>(count), 1.5F), sum(static_cast<size_t>(count) + 1, 2.0F);
      std::vector<uint16_t> half(static_cast<size_t>(count) + 1, 7);
      kernels.table->from_float(from.data(), DType::kBFloat16, half.data(), count);
      EXPECT_EQ(half.back(), 7);
      kernels.table->add(from.data(), sum.data(), count);
      EXPECT_EQ(sum.back(), 2.0F);
      kernels.table->to_float(half.data(), DType::kBFloat16, sum.data(), count);
      EXPECT_EQ(sum.back(), 2.0F);
      for (int64_t i = 0; i < count; ++i) EXPECT_EQ(sum[static_cast<size_t>(i)], 1.5F);
    }
  }
}

TEST(Kernels, SumsWords) {
  Random random(5);
  for (const int64_t count : {0, 1, 7, 127, 128, 129, 1000, 300001}) {
    std::vector<uint32_t> words(static_cast<size_t>(count));
    for (uint32_t& word : words) word = static_cast<uint32_t>(random.integer(0, 0xffffffffLL));
    uint32_t sum = 0;
    for (const uint32_t word : words) sum += word;
    for (const NamedKernels& kernels : all_kernels()) {
      EXPECT_EQ(kernels.table->sum_words(words.data(), count), sum) << kernels.name << " " << count;
    }
    for (const int threads : {1, 3}) EXPECT_EQ(read_words(words.data(), count, threads), sum) << count;
  }
  EXPECT_THROW(read_words(nullptr, 1), InvalidArgument);
  EXPECT_THROW(read_words(nullptr, -1), InvalidArgument);
}

}  // namespace
}  // namespace vlkv::test
