// Embedding, norm and gathering against the oracle.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops/ops.h"
#include "tests/kernels/device_under_test.h"
#include "tests/reference/dense.h"

namespace keyline {
namespace {

class RowsTest : public testing::TestWithParam<DeviceUnderTest> {};

TEST_P(RowsTest, NormIsWithinAFewRoundings) {
  for (const int64_t dim : {1, 3, 16, 31, 64, 576, 4097}) {
    const auto in = RandomFloats(7 * dim, 1, 100.0f);
    const auto weight = RandomFloats(dim, 2);
    Workbench bench(GetParam().Open());
    const TensorView x = bench.Floats(7, dim, in);
    ops::Norm(bench.stream(), x, x, {bench.Array(weight), 1e-6f});  // in place
    const auto expected = reference::RmsNorm(reference::FromFloats(7, dim, in), weight, 1e-6f);
    const auto actual = bench.Read(x);
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_NEAR(actual[i], expected.values[i], 4e-6 * std::abs(expected.values[i])) << i;
    }
  }
}

TEST_P(RowsTest, NormOfZerosIsZero) {
  Workbench bench(GetParam().Open());
  const TensorView x = bench.Floats(2, 19);
  ops::Norm(bench.stream(), x, x, {bench.Array(std::vector<float>(19, 1.0f)), 1e-6f});
  EXPECT_EQ(bench.Read(x), std::vector<float>(38, 0.0f));
}

TEST_P(RowsTest, EmbeddingReadsRowsBackFromThePackedTable) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const int64_t vocabulary = 83, dim = 45;
    const auto table = RandomFloats(vocabulary * dim, 3);
    const std::vector<int32_t> ids = {0, 82, 15, 16, 17, 15, 64};
    Workbench bench(GetParam().Open());
    Batch batch;
    batch.tokens = static_cast<int>(ids.size());
    batch.token_ids = bench.Ints(ids);
    const TensorView hidden = bench.Floats(batch.tokens, dim);
    ops::Embed(bench.stream(), hidden, batch, bench.Pack(dtype, vocabulary, dim, table), 2.0f);
    const auto actual = bench.Read(hidden);
    for (size_t t = 0; t < ids.size(); ++t) {
      for (int64_t c = 0; c < dim; ++c) {
        double expected = table[ids[t] * dim + c];
        if (dtype == DType::kBF16) expected = reference::RoundMantissa(expected, 7);
        ASSERT_EQ(actual[t * dim + c], static_cast<float>(2 * expected)) << t << ", " << c;
      }
    }
  }
}

TEST_P(RowsTest, GatherTakesRowsInAnyOrder) {
  const auto in = RandomFloats(9 * 21, 4);
  const std::vector<int32_t> rows = {8, 0, 0, 3};
  Workbench bench(GetParam().Open());
  const TensorView out = bench.Floats(4, 21);
  ops::GatherRows(bench.stream(), out, bench.Floats(9, 21, in), bench.Ints(rows));
  const auto actual = bench.Read(out);
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i], in[rows[i / 21] * 21 + i % 21]);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, RowsTest, testing::ValuesIn(DevicesUnderTest()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace keyline
