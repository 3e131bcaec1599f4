// Rows of blocks read as they are: in the order that ReadRows gives, every number kept.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/device/half.h"
#include "runtime/files/gguf/gguf_blocks.h"
#include "runtime/files/weight_source.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;

// A tensor of random codes whose scales and mins lie in (-2, 2).
struct Tensor {
  std::vector<std::byte> bytes;
  SourceTensor tensor;

  Tensor(DType dtype, int64_t rows, int64_t cols) : bytes(BytesOf(dtype, rows * cols)) {
    std::mt19937 random(static_cast<int>(dtype));
    std::uniform_real_distribution<float> real(-2.0f, 2.0f);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random());
    for (size_t at = 0; at < bytes.size(); at += TraitsOf(dtype).block_bytes) {
      SetHalf(at, real(random));
      if (dtype == DType::kQ4_1) SetHalf(at + 2, real(random));
    }
    tensor.dtype = dtype;
    tensor.shape = {rows, cols};
    tensor.data = bytes.data();
    tensor.bytes = bytes.size();
  }
  void SetHalf(size_t at, float x) {
    const uint16_t half = ToHalf(x);
    std::memcpy(&bytes[at], &half, sizeof(half));
  }
};

class BlockRows : public ::testing::TestWithParam<std::pair<DType, DType>> {};

TEST_P(BlockRows, HaveTheNumbersOfTheFile) {
  const auto [stored, format] = GetParam();
  constexpr int64_t kRows = 24;
  constexpr int64_t kCols = 96;
  for (const int64_t heads : {0, 3}) {
    Tensor t(stored, kRows, kCols);
    t.tensor.interleaved_heads = heads;
    ASSERT_TRUE(HasBlocksOf(stored, format));
    for (const auto& [first, count] : {std::pair{0, 24}, {5, 7}, {23, 1}, {4, 0}}) {
      std::vector<float> expected(count * kCols), actual(count * kCols);
      ASSERT_TRUE(ReadRows(t.tensor, first, count, expected.data()).ok());
      std::vector<std::byte> blocks(BytesOf(format, count * kCols));
      ASSERT_TRUE(ReadBlockRows(t.tensor, format, first, count, blocks.data()).ok());
      DequantizeRow(format, blocks.data(), count * kCols, actual.data());
      for (size_t i = 0; i < actual.size(); ++i) {
        // scale * q - 8 * scale is rounded where scale * (q - 8) is not.
        ASSERT_NEAR(actual[i], expected[i], stored == format ? 0 : 0x1p-19) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, BlockRows,
                         ::testing::Values(std::pair{DType::kQ8_0, DType::kQ8_0},
                                           std::pair{DType::kQ4_1, DType::kQ4_1},
                                           std::pair{DType::kQ4_0, DType::kQ4_1}),
                         [](const auto& info) { return std::string(Name(info.param.first)); });

TEST(BlockRowsOf, NothingElseHasThem) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ5_0, DType::kQ5_1,
                            DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    EXPECT_FALSE(HasBlocksOf(dtype, DType::kQ8_0)) << Name(dtype);
    EXPECT_FALSE(HasBlocksOf(dtype, DType::kQ4_1)) << Name(dtype);
  }
  EXPECT_FALSE(HasBlocksOf(DType::kQ4_1, DType::kQ8_0));
  EXPECT_FALSE(HasBlocksOf(DType::kQ8_0, DType::kQ4_1));
}

TEST(BlockRowsOf, AScaleWhoseMinDoesNotFitIsRefused) {
  Tensor t(DType::kQ4_0, 4, 64);
  std::vector<std::byte> blocks(BytesOf(DType::kQ4_1, 4 * 64));
  t.SetHalf(3 * TraitsOf(DType::kQ4_0).block_bytes, -8188.0f);  // of row 1
  EXPECT_TRUE(ReadBlockRows(t.tensor, DType::kQ4_1, 0, 4, blocks.data()).ok());
  t.SetHalf(3 * TraitsOf(DType::kQ4_0).block_bytes, 8200.0f);
  const absl::Status refused = ReadBlockRows(t.tensor, DType::kQ4_1, 0, 4, blocks.data());
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("beyond 8188"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--weight-storage plain"));
  EXPECT_TRUE(ReadBlockRows(t.tensor, DType::kQ4_1, 2, 2, blocks.data()).ok());
}

// A scale that is no number makes its block no number, as it does where blocks are dequantised.
TEST(BlockRowsOf, AScaleThatIsNoNumberStaysOne) {
  for (const DType stored : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const DType format = stored == DType::kQ8_0 ? DType::kQ8_0 : DType::kQ4_1;
    Tensor t(stored, 1, 64);
    t.SetHalf(TraitsOf(stored).block_bytes, std::numeric_limits<float>::quiet_NaN());
    std::vector<std::byte> blocks(BytesOf(format, 64));
    ASSERT_TRUE(ReadBlockRows(t.tensor, format, 0, 1, blocks.data()).ok());
    std::vector<float> values(64);
    DequantizeRow(format, blocks.data(), 64, values.data());
    for (size_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(values[i]), i >= 32) << i;
  }
}

TEST(Half, RoundsToTheNearest) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float x = FromHalf(half);
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(FromHalf(ToHalf(x))));
      continue;
    }
    ASSERT_EQ(ToHalf(x), half) << x;
    // Half way to the next number of larger size: to the even one; beyond it: to the next.
    if ((bits & 0x7fff) >= 0x7bff) continue;
    const float next = FromHalf(static_cast<uint16_t>(half + 1));
    const float middle = x + (next - x) / 2;
    ASSERT_EQ(ToHalf(middle), half % 2 == 0 ? half : half + 1) << middle;
    ASSERT_EQ(ToHalf(std::nextafter(middle, next)), half + 1) << middle;
    ASSERT_EQ(ToHalf(std::nextafter(middle, x)), half) << middle;
  }
  EXPECT_EQ(ToHalf(65519.9f), 0x7bff);
  EXPECT_EQ(ToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(ToHalf(-1e30f), 0xfc00);
}

}  // namespace
}  // namespace keyline
