// q/k norm and RoPE of RotateAndWrite, against loops in double: q where it stands, k and v where
// they were written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/ops/cache_ops.h"
#include "runtime/cache/kv_storage.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

struct RotateCase {
  int heads, kv_heads, head_dim, rotary_dim;
  bool norm;
};

class RotateAndWrite : public testing::TestWithParam<std::tuple<RotateCase, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }
};

TEST_P(RotateAndWrite, EqualsLoopsInDouble) {
  const auto& [c, under_test] = GetParam();
  constexpr int kTokens = 37;
  constexpr int kPositions = 100;
  constexpr int kSlots = 64;
  Workbench bench(under_test);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  AttentionSpec spec = PlainSpec(c.heads, c.kv_heads, c.head_dim);
  const int pairs = c.rotary_dim / 2;
  std::vector<float> angles;
  for (int p = 0; p < kPositions; ++p) {
    for (int i = 0; i < pairs; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / std::max(c.rotary_dim, 1));
      angles.push_back(static_cast<float>(std::cos(angle)));
      angles.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  spec.rope = {bench.Array(angles), c.rotary_dim, kPositions};
  std::vector<float> q_weight(c.head_dim), k_weight(c.head_dim);
  for (float& x : q_weight) x = normal(random);
  for (float& x : k_weight) x = normal(random);
  if (c.norm) {
    spec.q_norm = {bench.Array(q_weight), 1e-5f};
    spec.k_norm = {bench.Array(k_weight), 1e-3f};
  }
  const int heads = c.heads + 2 * c.kv_heads;
  const int width = heads * c.head_dim;
  std::vector<float> before(size_t{kTokens} * width);
  for (float& x : before) x = normal(random);
  before = Rounded(under_test.activations, before);
  std::vector<int32_t> positions(kTokens);
  for (int t = 0; t < kTokens; ++t) positions[t] = (t * 31) % kPositions;

  const KvStorage storage = *KvStorage::Create(bench.device(), {KvFormat::kF32, KvFormat::kF32}, 1,
                                               c.kv_heads, c.head_dim, kSlots);
  LaneRules rules;
  rules.policy = 0;
  rules.length = kSlots;
  const size_t slots_of_lane = size_t(c.kv_heads) * kSlots;
  const SlotTable table{.lanes = 1,
                        .kv_heads = c.kv_heads,
                        .slots = kSlots,
                        .rules = bench.Array(std::vector<LaneRules>{rules}),
                        .slot_pos = bench.Array(std::vector<int32_t>(slots_of_lane, -1)),
                        .scores = bench.Array(std::vector<float>(slots_of_lane, 7.0f)),
                        .value_norms = bench.Array(std::vector<float>(slots_of_lane, 7.0f))};
  // Every token to a slot of its own in each head.
  const auto slot_of = [](int token, int head) { return (token * 5 + head * 3) % kSlots; };
  std::vector<int32_t> slots;
  for (int t = 0; t < kTokens; ++t) {
    for (int g = 0; g < c.kv_heads; ++g) slots.push_back(slot_of(t, g));
  }
  const Chunk chunk{.lane = 0,
                    .first_token = 0,
                    .tokens = kTokens,
                    .first_position = 0,
                    .takes_mass = 0,
                    .chunk_tokens = kTokens,
                    .chunk_position = 0};
  const Batch batch{.tokens = kTokens,
                    .chunks = 1,
                    .max_chunk_tokens = kTokens,
                    .chunk = bench.Array(std::vector<Chunk>{chunk}),
                    .positions = bench.Ints(positions),
                    .token_chunk = bench.Ints(std::vector<int32_t>(kTokens, 0))};
  const TensorView qkv = bench.Floats(kTokens, width, before);
  ops::RotateAndWrite(bench.stream(), storage.memory(), table, {.slots = bench.Array(slots)}, qkv,
                      batch, spec);
  const std::vector<float> after = bench.Read(qkv);
  const size_t lane_floats = ops::PackedLaneBytes(storage.memory(), kSlots) / sizeof(float);
  float* lane = bench.Array(std::vector<float>(lane_floats));
  ops::PackLane(bench.stream(), reinterpret_cast<std::byte*>(lane), storage.memory(), 0, kSlots);
  const std::vector<float> packed = bench.Read(lane, lane_floats);
  // Where the op left a head of a token: q in qkv, k and v in the packed lane.
  const auto written = [&](int token, int head) {
    if (head < c.heads) return after.data() + int64_t{token} * width + head * c.head_dim;
    const int v = head >= c.heads + c.kv_heads;
    const int kv_head = (head - c.heads) % c.kv_heads;
    return packed.data() +
           ((int64_t{kv_head} * 2 + v) * kSlots + slot_of(token, kv_head)) * c.head_dim;
  };
  const std::vector<int32_t> slot_pos = bench.Read(table.slot_pos, slots_of_lane);
  const std::vector<float> scores = bench.Read(table.scores, slots_of_lane);
  const std::vector<float> norms = bench.Read(table.value_norms, slots_of_lane);

  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < heads; ++h) {
      const int64_t at = int64_t{t} * width + h * c.head_dim;
      std::vector<double> x(before.begin() + at, before.begin() + at + c.head_dim);
      if (h < c.heads + c.kv_heads) {
        if (c.norm) {
          const bool is_q = h < c.heads;
          double squares = 0;
          for (double e : x) squares += e * e;
          const double scale = 1 / std::sqrt(squares / c.head_dim + (is_q ? 1e-5 : 1e-3));
          for (int i = 0; i < c.head_dim; ++i) x[i] *= scale * (is_q ? q_weight : k_weight)[i];
        }
        for (int i = 0; i < pairs; ++i) {
          const double cosine = angles[(positions[t] * pairs + i) * 2];
          const double sine = angles[(positions[t] * pairs + i) * 2 + 1];
          const double a = x[i], b = x[i + pairs];
          x[i] = a * cosine - b * sine;
          x[i + pairs] = b * cosine + a * sine;
        }
      }
      // q has the type of activations; k and v go from float32 to their slots.
      const bool rounded = h < c.heads && under_test.activations != DType::kF32;
      const float* got = written(t, h);
      for (int i = 0; i < c.head_dim; ++i) {
        const double bound = 1e-5 + (rounded ? under_test.half_ulp() * std::fabs(x[i]) : 0);
        ASSERT_NEAR(got[i], x[i], bound) << t << " " << h;
      }
    }
    for (int g = 0; g < c.kv_heads; ++g) {
      const size_t at = size_t(g) * kSlots + slot_of(t, g);
      EXPECT_EQ(slot_pos[at], positions[t]);
      EXPECT_EQ(scores[at], 0);
      double squares = 0;
      const int64_t v = int64_t{t} * width + (c.heads + c.kv_heads + g) * c.head_dim;
      for (int i = 0; i < c.head_dim; ++i) squares += double{before[v + i]} * before[v + i];
      EXPECT_NEAR(norms[at], std::sqrt(squares), 1e-5 * std::sqrt(squares));
    }
  }
  EXPECT_EQ(std::count(slot_pos.begin(), slot_pos.end(), -1), c.kv_heads * (kSlots - kTokens));
}

const RotateCase kCases[] = {{4, 2, 16, 16, false}, {3, 1, 64, 64, true},    {2, 2, 80, 20, true},
                             {1, 1, 24, 0, true},   {5, 1, 256, 256, false}, {2, 1, 7, 6, true}};

INSTANTIATE_TEST_SUITE_P(All, RotateAndWrite,
                         testing::Combine(testing::ValuesIn(kCases),
                                          testing::Values(DefaultCpu())));
INSTANTIATE_TEST_SUITE_P(cuda, RotateAndWrite,
                         testing::Combine(testing::ValuesIn(kCases),
                                          testing::ValuesIn(CudasUnderTest())));

}  // namespace
}  // namespace keyline
