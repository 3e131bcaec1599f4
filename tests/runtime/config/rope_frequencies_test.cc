// Rotary frequencies against numbers of transformers 5.17 (modeling_rope_utils.py in double).
#include "runtime/config/rope_frequencies.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace keyline {
namespace {

using Kind = RopeConfig::Kind;

struct Case {
  const char* name;
  RopeConfig rope;
  int rotary_dim;
  double attention_factor;
  std::vector<std::pair<int, double>> frequencies;  // some of them
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

RopeConfig Rope(Kind kind, double theta, double factor, int64_t trained = 0) {
  RopeConfig rope;
  rope.kind = kind;
  rope.theta = theta;
  rope.factor = factor;
  rope.original_max_positions = trained;
  return rope;
}

RopeConfig WithAttentionFactor(RopeConfig rope, double factor) {
  rope.attention_factor = factor;
  return rope;
}

RopeConfig WithDivisors(RopeConfig rope, std::vector<float> divisors) {
  rope.frequency_divisors = std::move(divisors);
  return rope;
}

// Llama 3's low and high factors are 1 and 4, RopeConfig's defaults.
std::vector<Case> Cases() {
  return {
      {"Default",
       Rope(Kind::kDefault, 1e4, 1),
       8,
       1.0,
       {{0, 1.0}, {1, 0.1}, {2, 0.01}, {3, 0.001}}},
      {"Linear",
       Rope(Kind::kLinear, 10000.0, 2.5),
       8,
       1.0,
       {{0, 0.4}, {1, 0.04}, {2, 0.004}, {3, 0.0004}}},
      {"Llama31",
       Rope(Kind::kLlama3, 500000.0, 8.0, 8192),
       128,
       1.0,
       {{0, 1.0},
        {1, 0.8146172338565447},
        {16, 0.03760603093086393},
        {31, 0.0008567514129196324},
        {32, 0.0005248461609929547},
        {37, 6.341514345777615e-05},
        {48, 6.647869871181236e-06},
        {63, 3.068925988914511e-07}}},
      {"TinyLlama3",
       Rope(Kind::kLlama3, 500000.0, 8.0, 64),
       16,
       1.0,
       {{0, 1.0},
        {1, 0.0794030091792082},
        {2, 0.004700753866357992},
        {3, 0.0009115830921521386},
        {4, 0.00017677669529663688},
        {7, 1.2891731721515574e-06}}},
      {"Qwen3Yarn",
       Rope(Kind::kYarn, 1e6, 4.0, 32768),
       128,
       1.138629436111989,
       {{0, 1.0},
        {1, 0.8058421877614819},
        {16, 0.03162277660168379},
        {31, 0.0008029597275452302},
        {32, 0.0006029411764705882},
        {37, 0.00012993149493015669},
        {48, 7.905694150420949e-06},
        {63, 3.102344401879299e-07}}},
      {"TinyYarn",
       Rope(Kind::kYarn, 1e6, 4.0, 64),
       32,
       1.138629436111989,
       {{0, 1.0},
        {1, 0.3162723775714368},
        {4, 0.007905694150420948},
        {7, 0.0005928434264154138},
        {15, 5.928434264154139e-07}}},
      {"YarnWithAttentionFactor",
       WithAttentionFactor(Rope(Kind::kYarn, 1e4, 40.0, 4096), 1.0879546075066122),
       64,
       1.0879546075066122,
       {{0, 1.0},
        {1, 0.7498942093324559},
        {8, 0.1},
        {15, 0.008334508951020777},
        {16, 0.0055},
        {21, 0.0004149903984907897},
        {31, 3.33380358040831e-06}}},
      {"Divisors",
       WithDivisors(Rope(Kind::kDefault, 1e4, 1), {1, 2, 4, 8}),
       8,
       1.0,
       {{0, 1.0}, {1, 0.05}, {2, 0.0025}, {3, 0.000125}}},
  };
}

class RopeFrequencies : public ::testing::TestWithParam<Case> {};

TEST_P(RopeFrequencies, EqualTransformers) {
  const std::vector<double> frequencies =
      InverseFrequencies(GetParam().rope, GetParam().rotary_dim);
  ASSERT_EQ(frequencies.size(), GetParam().rotary_dim / 2);
  for (const auto& [i, expected] : GetParam().frequencies) {
    EXPECT_NEAR(frequencies[i], expected, 1e-12 * expected) << i;
  }
  EXPECT_NEAR(RopeAttentionFactor(GetParam().rope), GetParam().attention_factor, 1e-12);
}

INSTANTIATE_TEST_SUITE_P(Kinds, RopeFrequencies, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace keyline
