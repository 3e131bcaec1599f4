// Block formats against plain loops in double, written from the format's description element by
// element.
#include "runtime/files/gguf/gguf_blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace keyline {
namespace {

double Half(const uint8_t* bytes) {
  const int bits = bytes[0] | bytes[1] << 8;
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = (bits >> 15) != 0 ? -1.0 : 1.0;
  if (exponent == 31) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

int Nibble(const uint8_t* quants, int i) { return i < 16 ? quants[i] % 16 : quants[i - 16] / 16; }
int Bit(const uint8_t* bytes, int i) { return bytes[i / 8] >> (i % 8) & 1; }

// Six-bit scale and min of sub-block s of eight.
std::pair<int, int> SubScale(const uint8_t* s, int i) {
  if (i < 4) return {s[i] % 64, s[i + 4] % 64};
  return {s[i + 4] % 16 + s[i - 4] / 64 * 16, s[i + 4] / 16 + s[i] / 64 * 16};
}

// Element i of the block at b.
double Element(DType dtype, const uint8_t* b, int i) {
  switch (dtype) {
    case DType::kQ8_0:
      return Half(b) * static_cast<int8_t>(b[2 + i]);
    case DType::kQ4_0:
      return Half(b) * (Nibble(b + 2, i) - 8);
    case DType::kQ4_1:
      return Half(b) * Nibble(b + 4, i) + Half(b + 2);
    case DType::kQ5_0:
      return Half(b) * (Nibble(b + 6, i) + 16 * Bit(b + 2, i) - 16);
    case DType::kQ5_1:
      return Half(b) * (Nibble(b + 8, i) + 16 * Bit(b + 4, i)) + Half(b + 2);
    case DType::kQ4_K: {
      // Byte j of group g of 32 holds elements 64 g + j (low) and 64 g + 32 + j (high).
      const uint8_t byte = b[16 + i / 64 * 32 + i % 32];
      const int q = i % 64 < 32 ? byte % 16 : byte / 16;
      const auto [scale, min] = SubScale(b + 4, i / 32);
      return Half(b) * scale * q - Half(b + 2) * min;
    }
    case DType::kQ5_K: {
      const uint8_t byte = b[48 + i / 64 * 32 + i % 32];
      const int fifth = b[16 + i % 32] >> (i / 32) & 1;
      const int q = (i % 64 < 32 ? byte % 16 : byte / 16) + 16 * fifth;
      const auto [scale, min] = SubScale(b + 4, i / 32);
      return Half(b) * scale * q - Half(b + 2) * min;
    }
    case DType::kQ6_K: {
      // Halves of 128: 64 bytes of nibbles, 32 bytes of pairs of bits.
      const int half = i / 128;
      const int at = i % 128;
      const uint8_t low = b[half * 64 + at % 64];
      const int nibble = at < 64 ? low % 16 : low / 16;
      const int two = b[128 + half * 32 + at % 32] >> (at / 32 * 2) & 3;
      return Half(b + 208) * static_cast<int8_t>(b[192 + i / 16]) * (nibble + 16 * two - 32);
    }
    default:
      ADD_FAILURE();
      return 0;
  }
}

class Blocks : public ::testing::TestWithParam<DType> {};

TEST_P(Blocks, EqualTheReference) {
  const DType dtype = GetParam();
  const DTypeTraits traits = TraitsOf(dtype);
  constexpr int kBlocks = 37;
  std::mt19937_64 random(static_cast<int>(dtype));
  std::vector<uint8_t> bytes(kBlocks * traits.block_bytes);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  // Scales are halves: those beyond 1 would only make sums cancel, so exponents are kept below.
  const auto tame = [](uint8_t* half) { half[1] &= 0xbb; };
  for (int i = 0; i < kBlocks; ++i) {
    uint8_t* const block = bytes.data() + i * traits.block_bytes;
    tame(dtype == DType::kQ6_K ? block + 208 : block);
    tame(block + 2);
  }
  std::vector<float> out(kBlocks * traits.block_elements);
  DequantizeRow(dtype, reinterpret_cast<const std::byte*>(bytes.data()), out.size(), out.data());
  for (size_t i = 0; i < out.size(); ++i) {
    const uint8_t* const block = bytes.data() + i / traits.block_elements * traits.block_bytes;
    const double expected = Element(dtype, block, static_cast<int>(i % traits.block_elements));
    // Two roundings of terms up to 63 * 31 each.
    ASSERT_NEAR(out[i], expected, 1e-6 * std::abs(expected) + 3e-4) << Name(dtype) << " " << i;
  }
}

TEST_P(Blocks, ZeroBlocksAreZero) {
  const DTypeTraits traits = TraitsOf(GetParam());
  const std::vector<std::byte> bytes(2 * traits.block_bytes);
  std::vector<float> out(2 * traits.block_elements, 1.0f);
  DequantizeRow(GetParam(), bytes.data(), out.size(), out.data());
  for (const float x : out) EXPECT_EQ(x, 0.0f);
}

INSTANTIATE_TEST_SUITE_P(All, Blocks,
                         ::testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                                           DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST(PlainFloats, EveryHalf) {
  std::vector<uint16_t> halves(1 << 16);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> out(halves.size());
  DequantizeRow(DType::kF16, reinterpret_cast<const std::byte*>(halves.data()), out.size(),
                out.data());
  for (size_t i = 0; i < out.size(); ++i) {
    const double expected = Half(reinterpret_cast<const uint8_t*>(&halves[i]));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(out[i])) << i;
    } else {
      ASSERT_EQ(out[i], expected) << i;
      ASSERT_EQ(std::signbit(out[i]), std::signbit(expected)) << i;
    }
  }
}

TEST(PlainFloats, Bf16IsTheUpperHalf) {
  const uint16_t bits[] = {0x3f80, 0xc049, 0x0000, 0x8000, 0x7f80};
  float out[5];
  DequantizeRow(DType::kBF16, reinterpret_cast<const std::byte*>(bits), 5, out);
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], -3.140625f);
  EXPECT_EQ(out[2], 0.0f);
  EXPECT_TRUE(std::signbit(out[3]));
  EXPECT_EQ(out[4], std::numeric_limits<float>::infinity());
}

TEST(PlainFloats, IntegersAreNotWeights) {
  EXPECT_TRUE(CanDequantize(DType::kF32));
  EXPECT_TRUE(CanDequantize(DType::kQ6_K));
  for (DType t : {DType::kI4, DType::kI8, DType::kU8, DType::kI32, DType::kI64}) {
    EXPECT_FALSE(CanDequantize(t));
  }
}

}  // namespace
}  // namespace keyline
