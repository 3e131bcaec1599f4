// Matrix products against the oracle, and the law of the CPU: a row's result does not depend on the
// other rows or on the number of threads, to the bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ops/ops.h"
#include "tests/kernels/device_under_test.h"
#include "tests/reference/dense.h"

namespace keyline {
namespace {

using reference::FromFloats;
using reference::Matrix;

constexpr double kHalfUlp = 1.0 / (1 << 24);

struct Shape {
  int64_t rows, outputs, inputs;
};

// Odd on purpose: less than a tile, a tile and one, an odd number of inputs, more than a block of
// rows, more than a chunk of rows, more inputs than one block of the cache.
const Shape kShapes[] = {{1, 1, 1},   {1, 17, 3},   {2, 33, 31},  {3, 16, 576},
                         {4, 49, 64}, {5, 48, 577}, {7, 100, 40}, {8, 160, 576},
                         {9, 17, 5},  {37, 33, 31}, {130, 70, 9}, {3, 40, 4200}};

class MatMulTest : public testing::TestWithParam<std::tuple<DeviceUnderTest, DType>> {
 protected:
  const DeviceUnderTest& device() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  // Numbers as the product sees them.
  Matrix Seen(Matrix m) const {
    return dtype() == DType::kBF16 ? reference::RoundToBF16(std::move(m)) : m;
  }
};

// |actual - expected| within `ulps` float32 roundings per input, each relative to the sum of the
// magnitudes, plus `extra` of that sum.
void ExpectClose(const std::vector<float>& actual, const Matrix& expected, const Matrix& magnitude,
                 int64_t inputs, double extra = 0) {
  ASSERT_EQ(actual.size(), expected.values.size());
  const double relative = kHalfUlp * static_cast<double>(inputs + 4) + extra;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double bound = relative * (magnitude.values[i] + std::abs(expected.values[i])) + 1e-30;
    ASSERT_NEAR(actual[i], expected.values[i], bound) << "element " << i;
  }
}

TEST_P(MatMulTest, IsWithinTheErrorOfSummation) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message()
                 << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
    const auto in = RandomFloats(shape.rows * shape.inputs, 1);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 2);
    const auto bias = RandomFloats(shape.outputs, 3);
    const auto before = RandomFloats(shape.rows * shape.outputs, 4);
    const Matrix in_seen = Seen(FromFloats(shape.rows, shape.inputs, in));
    const Matrix w_seen = Seen(FromFloats(shape.outputs, shape.inputs, w));
    const Matrix magnitude = reference::MagnitudeOfMatMul(in_seen, w_seen);

    Workbench bench(device().Open());
    const TensorView x = bench.Floats(shape.rows, shape.inputs, in);
    const TensorView out = bench.Floats(shape.rows, shape.outputs, before);
    ops::MatMul(bench.stream(), out, x, bench.Pack(dtype(), shape.outputs, shape.inputs, w, bias));
    ExpectClose(bench.Read(out), reference::MatMul(in_seen, w_seen, bias), magnitude, shape.inputs);

    const TensorView sum = bench.Floats(shape.rows, shape.outputs, before);
    ops::MatMulAdd(bench.stream(), sum, x, bench.Pack(dtype(), shape.outputs, shape.inputs, w));
    Matrix expected = reference::MatMul(in_seen, w_seen, {});
    for (size_t i = 0; i < before.size(); ++i) expected.values[i] += before[i];
    ExpectClose(bench.Read(sum), expected, magnitude, shape.inputs);
  }
}

TEST_P(MatMulTest, NormThenProductIsTheSameToTheBit) {
  for (const Shape& shape : kShapes) {
    const auto in = RandomFloats(shape.rows * shape.inputs, 5, 3.0f);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 6);
    const auto norm_weight = RandomFloats(shape.inputs, 7);
    Workbench bench(device().Open());
    const Weight weight = bench.Pack(dtype(), shape.outputs, shape.inputs, w);
    const RmsNorm norm = {bench.Array(norm_weight), 1e-5f};
    const TensorView x = bench.Floats(shape.rows, shape.inputs, in);
    const TensorView fused = bench.Floats(shape.rows, shape.outputs);
    ops::NormMatMul(bench.stream(), fused, x, norm, weight);

    const TensorView normed = bench.Floats(shape.rows, shape.inputs);
    const TensorView apart = bench.Floats(shape.rows, shape.outputs);
    ops::Norm(bench.stream(), normed, x, norm);
    ops::MatMul(bench.stream(), apart, normed, weight);
    EXPECT_EQ(bench.Read(fused), bench.Read(apart));
  }
}

TEST_P(MatMulTest, GatedProductMatchesTheOracle) {
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu}) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(testing::Message()
                   << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
      const auto in = RandomFloats(shape.rows * shape.inputs, 8);
      const auto w = RandomFloats(2 * shape.outputs * shape.inputs, 9);
      const auto bias = RandomFloats(2 * shape.outputs, 10);
      const auto norm_weight = RandomFloats(shape.inputs, 11);
      Workbench bench(device().Open());
      const RmsNorm norm = {bench.Array(norm_weight), 1e-5f};
      const TensorView x = bench.Floats(shape.rows, shape.inputs, in);
      const TensorView out = bench.Floats(shape.rows, shape.outputs);
      ops::NormGatedMatMul(bench.stream(), out, x, norm,
                           bench.Pack(dtype(), 2 * shape.outputs, shape.inputs, w, bias),
                           activation);

      // What the product sees of the norm depends on its last bit: take the device's own norm.
      const TensorView normed = bench.Floats(shape.rows, shape.inputs);
      ops::Norm(bench.stream(), normed, x, norm);
      const Matrix seen = Seen(FromFloats(shape.rows, shape.inputs, bench.Read(normed)));
      const Matrix w_seen = Seen(FromFloats(2 * shape.outputs, shape.inputs, w));
      const Matrix sums = reference::MatMul(seen, w_seen, bias);
      const Matrix magnitude = reference::MagnitudeOfMatMul(seen, w_seen);
      const std::vector<float> actual = bench.Read(out);
      for (int64_t r = 0; r < shape.rows; ++r) {
        for (int64_t n = 0; n < shape.outputs; ++n) {
          const double up = sums.at(r, shape.outputs + n);
          const double gate = reference::Activate(activation, sums.at(r, n));
          const double relative = kHalfUlp * static_cast<double>(shape.inputs + 8);
          // No gate is steeper than 1.13.
          const double bound =
              relative * (1.2 * (magnitude.at(r, n) + std::abs(bias[n])) * std::abs(up) +
                          std::abs(gate) * (magnitude.at(r, shape.outputs + n) +
                                            std::abs(bias[shape.outputs + n])) +
                          4 * std::abs(gate * up)) +
              1e-30;
          ASSERT_NEAR(actual[r * shape.outputs + n], gate * up, bound) << r << ", " << n;
        }
      }
    }
  }
}

// The four products with the same weights, of any rows of the same input.
class AllProducts {
 public:
  AllProducts(const DeviceUnderTest& device, DType dtype, int threads, int64_t inputs)
      : bench_(device.Open(threads)),
        in_(bench_.Floats(kRows, inputs, RandomFloats(kRows * inputs, 12))),
        w_(bench_.Pack(dtype, kOutputs, inputs, RandomFloats(kOutputs * inputs, 13))),
        gated_(bench_.Pack(dtype, 2 * kOutputs, inputs, RandomFloats(2 * kOutputs * inputs, 14))),
        norm_({bench_.Array(RandomFloats(inputs, 15)), 1e-5f}),
        out_(bench_.Floats(kRows, 4 * kOutputs)) {}

  std::vector<float> OfRows(int64_t first, int64_t count) {
    Stream& s = bench_.stream();
    const TensorView in = in_.Rows(first, count);
    const TensorView out = out_.Rows(first, count);
    s.ZeroAsync(out.data, out.bytes());
    ops::MatMul(s, out.Columns(0, kOutputs), in, w_);
    ops::MatMulAdd(s, out.Columns(kOutputs, kOutputs), in, w_);
    ops::NormMatMul(s, out.Columns(2 * kOutputs, kOutputs), in, norm_, w_);
    ops::NormGatedMatMul(s, out.Columns(3 * kOutputs, kOutputs), in, norm_, gated_,
                         Activation::kSilu);
    return bench_.Read(out);
  }

  static constexpr int64_t kRows = 67;  // more than a chunk
  static constexpr int64_t kOutputs = 70;

 private:
  Workbench bench_;
  TensorView in_;
  Weight w_;
  Weight gated_;
  RmsNorm norm_;
  TensorView out_;
};

TEST_P(MatMulTest, RowsDoNotDependOnTheBatchOrTheThreads) {
  for (const int64_t inputs : {31, 1100}) {  // within a block of the cache, and beyond
    AllProducts one_thread(device(), dtype(), 1, inputs);
    std::vector<float> alone;
    for (int64_t row = 0; row < AllProducts::kRows; ++row) {
      const auto one = one_thread.OfRows(row, 1);
      alone.insert(alone.end(), one.begin(), one.end());
    }
    for (const int threads : {1, 2, 3}) {
      AllProducts products(device(), dtype(), threads, inputs);
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 37, 67}) {
        const std::vector<float> expected(alone.begin(),
                                          alone.begin() + rows * 4 * AllProducts::kOutputs);
        ASSERT_EQ(products.OfRows(0, rows), expected) << rows << " rows, " << threads << " threads";
      }
    }
  }
}

// The same bits on every machine; only native products of bf16 round in their own way.
TEST_P(MatMulTest, InstructionSetsAgreeToTheBit) {
  if (device().isa == "avx512_bf16" && dtype() == DType::kBF16) GTEST_SKIP();
  const DeviceUnderTest scalar = {"cpu_scalar", "scalar"};
  EXPECT_EQ(AllProducts(device(), dtype(), 1, 31).OfRows(0, 9),
            AllProducts(scalar, dtype(), 1, 31).OfRows(0, 9));
}

TEST_P(MatMulTest, NotANumberStaysInItsRow) {
  Workbench bench(device().Open());
  auto in = RandomFloats(5 * 20, 16);
  in[2 * 20 + 7] = NAN;
  const TensorView out = bench.Floats(5, 18);
  ops::MatMul(bench.stream(), out, bench.Floats(5, 20, in),
              bench.Pack(dtype(), 18, 20, RandomFloats(18 * 20, 17)));
  const std::vector<float> actual = bench.Read(out);
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(std::isnan(actual[i]), i / 18 == 2) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, MatMulTest,
                         testing::Combine(testing::ValuesIn(DevicesUnderTest()),
                                          testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::string(Name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace keyline
