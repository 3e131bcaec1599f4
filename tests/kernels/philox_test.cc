// Random123's known answers, and what a draw depends on.
#include "kernels/ops/philox.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

namespace keyline {
namespace {

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, uint32_t key0, uint32_t key1) {
  const PhiloxWords out =
      Philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key0, key1);
  return {out.word[0], out.word[1], out.word[2], out.word[3]};
}

using Words = std::array<uint32_t, 4>;

TEST(PhiloxTest, GivesTheKnownAnswersOfRandom123) {
  EXPECT_EQ(Philox({0, 0, 0, 0}, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, DrawsDifferBySeedSequenceAndPosition) {
  std::set<double> draws;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    for (uint64_t sequence : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
      for (uint32_t position = 0; position < 100; ++position) {
        const double draw = SamplingDraw(seed, sequence, position);
        EXPECT_GE(draw, 0.0);
        EXPECT_LT(draw, 1.0);
        draws.insert(draw);
      }
    }
  }
  EXPECT_EQ(draws.size(), 900u);
}

}  // namespace
}  // namespace keyline
