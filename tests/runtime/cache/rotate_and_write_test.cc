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

class RotateAndWrite : public testing::TestWithParam<RotateCase> {};

TEST_P(RotateAndWrite, EqualsLoopsInDouble) {
  const RotateCase& c = GetParam();
  constexpr int kTokens = 37;
  constexpr int kPositions = 100;
  const auto device = OpenTestDevice();
  const auto stream = device->NewStream();
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
  spec.rope = {angles.data(), c.rotary_dim, kPositions};
  std::vector<float> q_weight(c.head_dim), k_weight(c.head_dim);
  for (float& x : q_weight) x = normal(random);
  for (float& x : k_weight) x = normal(random);
  if (c.norm) {
    spec.q_norm = {q_weight.data(), 1e-5f};
    spec.k_norm = {k_weight.data(), 1e-3f};
  }
  const int heads = c.heads + 2 * c.kv_heads;
  const int width = heads * c.head_dim;
  std::vector<float> qkv(size_t{kTokens} * width);
  for (float& x : qkv) x = normal(random);
  const std::vector<float> before = qkv;
  std::vector<int32_t> positions(kTokens);
  for (int t = 0; t < kTokens; ++t) positions[t] = (t * 31) % kPositions;
  KvStorage storage =
      *KvStorage::Create(*device, {KvFormat::kF32, KvFormat::kF32}, 1, c.kv_heads, c.head_dim, 64);
  LaneRules rules;
  rules.policy = 0;
  rules.length = 64;
  std::vector<int32_t> slot_pos(size_t(c.kv_heads) * 64, -1);
  std::vector<float> scores(slot_pos.size(), 7.0f);
  const SlotTable table{.lanes = 1,
                        .kv_heads = c.kv_heads,
                        .slots = 64,
                        .rules = &rules,
                        .slot_pos = slot_pos.data(),
                        .scores = scores.data()};
  // Every token to a slot of its own in each head.
  const auto slot_of = [](int token, int head) { return (token * 5 + head * 3) % 64; };
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
  const std::vector<int32_t> token_chunk(kTokens, 0);
  const Batch batch{.tokens = kTokens,
                    .chunks = 1,
                    .max_chunk_tokens = kTokens,
                    .chunk = &chunk,
                    .positions = positions.data(),
                    .token_chunk = token_chunk.data()};
  ops::RotateAndWrite(*stream, storage.memory(), table, {.slots = slots.data()},
                      MakeView(qkv.data(), DType::kF32, {kTokens, width}), batch, spec);
  std::vector<float> packed(ops::PackedLaneBytes(storage.memory(), 64) / sizeof(float));
  ops::PackLane(*stream, reinterpret_cast<std::byte*>(packed.data()), storage.memory(), 0, 64);
  // Where the op left a head of a token: q in qkv, k and v in the packed lane.
  const auto written = [&](int token, int head) {
    if (head < c.heads) return qkv.data() + int64_t{token} * width + head * c.head_dim;
    const int v = head >= c.heads + c.kv_heads;
    const int kv_head = (head - c.heads) % c.kv_heads;
    return packed.data() + ((int64_t{kv_head} * 2 + v) * 64 + slot_of(token, kv_head)) * c.head_dim;
  };

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
      const float* got = written(t, h);
      for (int i = 0; i < c.head_dim; ++i) ASSERT_NEAR(got[i], x[i], 1e-5) << t << " " << h;
    }
    for (int g = 0; g < c.kv_heads; ++g) {
      const size_t at = size_t(g) * 64 + slot_of(t, g);
      EXPECT_EQ(slot_pos[at], positions[t]);
      EXPECT_EQ(scores[at], 0);
    }
  }
  EXPECT_EQ(std::count(slot_pos.begin(), slot_pos.end(), -1), c.kv_heads * (64 - kTokens));
}

INSTANTIATE_TEST_SUITE_P(All, RotateAndWrite,
                         testing::Values(RotateCase{4, 2, 16, 16, false},
                                         RotateCase{3, 1, 64, 64, true},
                                         RotateCase{2, 2, 80, 20, true},
                                         RotateCase{1, 1, 24, 0, true},
                                         RotateCase{5, 1, 256, 256, false}));

}  // namespace
}  // namespace keyline
