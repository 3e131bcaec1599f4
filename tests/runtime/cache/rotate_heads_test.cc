// q/k norm and RoPE inside Attend's first operation, against loops in double.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/ops/cache_ops.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

struct RotateCase {
  int heads, kv_heads, head_dim, rotary_dim;
  bool norm;
};

class RotateHeads : public testing::TestWithParam<RotateCase> {};

TEST_P(RotateHeads, EqualsLoopsInDouble) {
  const RotateCase& c = GetParam();
  constexpr int kTokens = 37;
  constexpr int kPositions = 100;
  const auto device = OpenTestDevice();
  const auto stream = device->NewStream();
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  AttentionSpec spec = PlainSpec(c.heads, c.kv_heads, c.head_dim);
  const int pairs = c.rotary_dim / 2;
  std::vector<float> table;
  for (int p = 0; p < kPositions; ++p) {
    for (int i = 0; i < pairs; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / std::max(c.rotary_dim, 1));
      table.push_back(static_cast<float>(std::cos(angle)));
      table.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  spec.rope = {table.data(), c.rotary_dim, kPositions};
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
  const Batch batch{.tokens = kTokens, .positions = positions.data()};
  ops::RotateHeads(*stream, MakeView(qkv.data(), DType::kF32, {kTokens, width}), batch, spec);

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
          const double cosine = table[(positions[t] * pairs + i) * 2];
          const double sine = table[(positions[t] * pairs + i) * 2 + 1];
          const double a = x[i], b = x[i + pairs];
          x[i] = a * cosine - b * sine;
          x[i + pairs] = b * cosine + a * sine;
        }
      }
      for (int i = 0; i < c.head_dim; ++i) ASSERT_NEAR(qkv[at + i], x[i], 1e-5) << t << " " << h;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RotateHeads,
                         testing::Values(RotateCase{4, 2, 16, 16, false},
                                         RotateCase{3, 1, 64, 64, true},
                                         RotateCase{2, 2, 80, 20, true},
                                         RotateCase{1, 1, 24, 0, true},
                                         RotateCase{5, 1, 256, 256, false}));

}  // namespace
}  // namespace keyline
