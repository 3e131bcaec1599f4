// Embedding, norm and gathering against the oracle.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops/ops.h"
#include "tests/kernels/device_under_test.h"
#include "tests/reference/dense.h"

namespace keyline {
namespace {

// Types of weights that a device has kernels for besides its own packed ones: CUDA computes in the
// type of the weights.
std::vector<DType> WeightTypes(const DeviceUnderTest& device) {
  if (device.cuda) return {device.activations};
  return {DType::kF32, DType::kBF16};
}

class RowsTest : public testing::TestWithParam<DeviceUnderTest> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(GetParam()); }
};

TEST_P(RowsTest, NormIsWithinAFewRoundings) {
  for (const int64_t dim : {1, 3, 16, 31, 64, 576, 4097}) {
    const auto in = Rounded(GetParam().activations, RandomFloats(7 * dim, 1, 100.0f));
    const auto weight = RandomFloats(dim, 2);
    Workbench bench(GetParam());
    const TensorView x = bench.Floats(7, dim, in);
    ops::Norm(bench.stream(), x, x, {bench.Array(weight), 1e-6f});  // in place
    const auto expected = reference::RmsNorm(reference::FromFloats(7, dim, in), weight, 1e-6f);
    const auto actual = bench.Read(x);
    // Computed in float32, then rounded to the type of activations.
    const double relative =
        4e-6 + (GetParam().activations == DType::kF32 ? 0 : GetParam().half_ulp());
    for (size_t i = 0; i < actual.size(); ++i) {
      // float16 has multiples of 2^-24 below its normal numbers.
      const double bound = relative * std::abs(expected.values[i]) +
                           (GetParam().activations == DType::kF16 ? 0x1p-25 : 0);
      ASSERT_NEAR(actual[i], expected.values[i], bound) << i;
    }
  }
}

TEST_P(RowsTest, NormOfZerosIsZero) {
  Workbench bench(GetParam());
  const TensorView x = bench.Floats(2, 19);
  ops::Norm(bench.stream(), x, x, {bench.Array(std::vector<float>(19, 1.0f)), 1e-6f});
  EXPECT_EQ(bench.Read(x), std::vector<float>(38, 0.0f));
}

TEST_P(RowsTest, EmbeddingReadsRowsBackFromThePackedTable) {
  for (const DType dtype : WeightTypes(GetParam())) {
    const int64_t vocabulary = 83, dim = 45;
    const auto table = RandomFloats(vocabulary * dim, 3);
    const std::vector<int32_t> ids = {0, 82, 15, 16, 17, 15, 64};
    Workbench bench(GetParam());
    Batch batch;
    batch.tokens = static_cast<int>(ids.size());
    batch.token_ids = bench.Ints(ids);
    const TensorView hidden = bench.Floats(batch.tokens, dim);
    ops::Embed(bench.stream(), hidden, batch, bench.Pack(dtype, vocabulary, dim, table), 2.0f);
    const auto actual = bench.Read(hidden);
    auto expected = Rounded(dtype, table);
    for (float& x : expected) x *= 2;
    expected = Rounded(GetParam().activations, expected);
    for (size_t t = 0; t < ids.size(); ++t) {
      for (int64_t c = 0; c < dim; ++c) {
        ASSERT_EQ(actual[t * dim + c], expected[ids[t] * dim + c]) << t << ", " << c;
      }
    }
  }
}

TEST_P(RowsTest, GatherTakesRowsInAnyOrder) {
  const auto in = Rounded(GetParam().activations, RandomFloats(9 * 21, 4));
  const std::vector<int32_t> rows = {8, 0, 0, 3};
  Workbench bench(GetParam());
  const TensorView out = bench.Floats(4, 21);
  ops::GatherRows(bench.stream(), out, bench.Floats(9, 21, in), bench.Ints(rows));
  const auto actual = bench.Read(out);
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i], in[rows[i / 21] * 21 + i % 21]);
  }
}

// Rows that fall into whole loads of 16 bytes, in tensors whose rows lie apart.
TEST_P(RowsTest, RowsMayLieApart) {
  const int64_t dim = 64, apart = 104;
  const auto in = Rounded(GetParam().activations, RandomFloats(5 * apart, 6));
  const auto weight = RandomFloats(dim, 7);
  Workbench bench(GetParam());
  const TensorView x = bench.Floats(5, apart, in).Columns(8, dim);
  const TensorView out = bench.Floats(5, apart).Columns(40, dim);
  const TensorView together = bench.Floats(5, dim);
  std::vector<float> columns;
  for (int64_t r = 0; r < 5; ++r) {
    columns.insert(columns.end(), in.begin() + r * apart + 8, in.begin() + r * apart + 8 + dim);
  }
  const RmsNorm norm = {bench.Array(weight), 1e-6f};
  ops::Norm(bench.stream(), out, x, norm);
  ops::Norm(bench.stream(), together, bench.Floats(5, dim, columns), norm);
  EXPECT_EQ(bench.Read(out), bench.Read(together));
  ops::GatherRows(bench.stream(), out, x, bench.Ints({4, 1, 1, 0, 2}));
  const auto gathered = bench.Read(out);
  for (size_t i = 0; i < gathered.size(); ++i) {
    const int64_t row = std::vector<int64_t>{4, 1, 1, 0, 2}[i / dim];
    ASSERT_EQ(gathered[i], columns[row * dim + i % dim]) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, RowsTest, testing::ValuesIn(DevicesUnderTest()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace keyline
