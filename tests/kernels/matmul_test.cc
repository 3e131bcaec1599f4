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
// And for GPUs, which take up to 32 rows in one pass over the weights. Large weights stream through
// each multiprocessor, from 6.5 MB on where there are 132 and inputs come out even in blocks of 64:
// inputs that end within a stage of 512, outputs within a piece of a tile, blocks with several
// tiles and a rest of one to three pieces.
const Shape kGpuShapes[] = {{12, 40, 72},     {16, 100, 1096},  {32, 70, 4200},   {17, 8600, 72},
                            {8, 3210, 1096},  {1, 13010, 320},  {3, 3690, 1088},  {8, 3210, 1088},
                            {12, 3210, 1088}, {32, 3301, 1088}, {17, 13010, 576}, {5, 800, 4096}};

class MatMulTest : public testing::TestWithParam<std::tuple<DeviceUnderTest, DType>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(device()); }

  const DeviceUnderTest& device() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  // Numbers as the product sees them: in the type of the weights. On CUDA that is the type of the
  // activations too.
  Matrix Seen(int64_t rows, int64_t cols, const std::vector<float>& values) const {
    return FromFloats(rows, cols, Rounded(dtype(), values));
  }
  // What a sum may be off by, relative to the sum of the magnitudes: half a unit of float32 for
  // each addition; a whole one on CUDA, whose tensor cores cut off where others round.
  double OfSums(int64_t additions) const {
    return kHalfUlp * static_cast<double>(additions) * (device().cuda ? 2 : 1);
  }
  // And by rounding the result to the type of activations, relative to the result; float32 counts
  // among the additions.
  double OfResults() const { return device().activations == DType::kF32 ? 0 : device().half_ulp(); }
  std::vector<Shape> Shapes(bool of_gpus = true) const {
    std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
    if (of_gpus && device().cuda && dtype() != DType::kF32) {
      shapes.insert(shapes.end(), std::begin(kGpuShapes), std::end(kGpuShapes));
    }
    return shapes;
  }
  // By rounding what a norm gives to the type of the weights, relative to the sum of the
  // magnitudes.
  double OfNormed() const {
    return dtype() == DType::kF32 ? 0 : std::ldexp(1.0, dtype() == DType::kBF16 ? -8 : -11);
  }
  // |actual - expected| within the error of the sums, and of the results' type.
  void ExpectClose(const std::vector<float>& actual, const Matrix& expected,
                   const Matrix& magnitude, int64_t inputs) const {
    ASSERT_EQ(actual.size(), expected.values.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      const double size = std::abs(expected.values[i]);
      const double bound = OfSums(inputs + 4) * (magnitude.values[i] + size) + OfResults() * size +
                           (device().activations == DType::kF16 ? 0x1p-24 : 1e-30);
      ASSERT_NEAR(actual[i], expected.values[i], bound) << "element " << i;
    }
  }
};

// What holds of packed weights too; their oracle is in packed_matmul_test.cc.
class MatMulLawTest : public MatMulTest {};

TEST_P(MatMulTest, IsWithinTheErrorOfSummation) {
  for (const Shape& shape : Shapes()) {
    SCOPED_TRACE(testing::Message()
                 << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
    const auto in = RandomFloats(shape.rows * shape.inputs, 1);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 2);
    const auto bias = RandomFloats(shape.outputs, 3);
    const auto before = Rounded(device().activations, RandomFloats(shape.rows * shape.outputs, 4));
    const Matrix in_seen = Seen(shape.rows, shape.inputs, in);
    const Matrix w_seen = Seen(shape.outputs, shape.inputs, w);
    const Matrix magnitude = reference::MagnitudeOfMatMul(in_seen, w_seen);

    Workbench bench(device());
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

// Logits are float32 whatever the activations are.
TEST_P(MatMulTest, ResultsMayBeFloat32) {
  for (const Shape& shape : Shapes()) {
    const auto in = RandomFloats(shape.rows * shape.inputs, 18);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 19);
    Workbench bench(device());
    const TensorView x = bench.Floats(shape.rows, shape.inputs, in);
    const TensorView out =
        bench.Logits(shape.rows, shape.outputs, std::vector<float>(shape.rows * shape.outputs));
    ops::MatMul(bench.stream(), out, x, bench.Pack(dtype(), shape.outputs, shape.inputs, w));
    const Matrix in_seen = Seen(shape.rows, shape.inputs, in);
    const Matrix w_seen = Seen(shape.outputs, shape.inputs, w);
    const Matrix expected = reference::MatMul(in_seen, w_seen, {});
    const Matrix magnitude = reference::MagnitudeOfMatMul(in_seen, w_seen);
    const std::vector<float> actual = bench.Read(out);
    for (size_t i = 0; i < actual.size(); ++i) {
      const double bound =
          OfSums(shape.inputs + 4) * (magnitude.values[i] + std::abs(expected.values[i])) + 1e-30;
      ASSERT_NEAR(actual[i], expected.values[i], bound) << "element " << i;
    }
  }
}

// CUDA may scale by the norm after the product, or round what is normed: it is held to the oracle.
TEST_P(MatMulTest, NormThenProductMatchesTheOracle) {
  for (const Shape& shape : Shapes()) {
    SCOPED_TRACE(testing::Message()
                 << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
    const auto in = RandomFloats(shape.rows * shape.inputs, 5, 3.0f);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 6);
    const auto norm_weight = RandomFloats(shape.inputs, 7);
    Workbench bench(device());
    const TensorView out = bench.Floats(shape.rows, shape.outputs);
    ops::NormMatMul(bench.stream(), out, bench.Floats(shape.rows, shape.inputs, in),
                    {bench.Array(norm_weight), 1e-5f},
                    bench.Pack(dtype(), shape.outputs, shape.inputs, w));
    const Matrix seen = FromFloats(shape.rows, shape.inputs, Rounded(device().activations, in));
    const Matrix normed = reference::RmsNorm(seen, norm_weight, 1e-5f);
    const Matrix w_seen = Seen(shape.outputs, shape.inputs, w);
    const Matrix expected = reference::MatMul(normed, w_seen, {});
    const Matrix magnitude = reference::MagnitudeOfMatMul(normed, w_seen);
    const std::vector<float> actual = bench.Read(out);
    // The norm is off by a few roundings of float32, and is rounded to the type of the weights.
    const double relative = OfSums(shape.inputs + 4) + 4e-6 + OfNormed();
    for (size_t i = 0; i < actual.size(); ++i) {
      const double bound = relative * magnitude.values[i] +
                           (OfResults() + kHalfUlp) * std::abs(expected.values[i]) +
                           (device().activations == DType::kF16 ? 0x1p-24 : 1e-30);
      ASSERT_NEAR(actual[i], expected.values[i], bound) << "element " << i;
    }
  }
}

TEST_P(MatMulLawTest, NormThenProductIsTheSameToTheBit) {
  if (device().cuda) GTEST_SKIP() << "a law of the CPU; CUDA may scale by the norm afterwards";
  for (const Shape& shape : kShapes) {
    const auto in = RandomFloats(shape.rows * shape.inputs, 5, 3.0f);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 6);
    const auto norm_weight = RandomFloats(shape.inputs, 7);
    Workbench bench(device());
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

// Of gate * up where both are off.
double OfErrorsOfBoth(double gate, double up) { return 1.2 * gate * up; }

TEST_P(MatMulTest, GatedProductMatchesTheOracle) {
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu}) {
    for (const Shape& shape : Shapes(activation == Activation::kSilu)) {
      SCOPED_TRACE(testing::Message()
                   << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
      const auto in = RandomFloats(shape.rows * shape.inputs, 8);
      const auto w = RandomFloats(2 * shape.outputs * shape.inputs, 9);
      const auto bias = RandomFloats(2 * shape.outputs, 10);
      const auto norm_weight = RandomFloats(shape.inputs, 11);
      Workbench bench(device());
      const RmsNorm norm = {bench.Array(norm_weight), 1e-5f};
      const TensorView x = bench.Floats(shape.rows, shape.inputs, in);
      const TensorView out = bench.Floats(shape.rows, shape.outputs);
      ops::NormGatedMatMul(bench.stream(), out, x, norm,
                           bench.Pack(dtype(), 2 * shape.outputs, shape.inputs, w, bias),
                           activation);

      // What the product sees of the norm depends on its last bit: take the device's own norm.
      const TensorView normed = bench.Floats(shape.rows, shape.inputs);
      ops::Norm(bench.stream(), normed, x, norm);
      const Matrix seen = Seen(shape.rows, shape.inputs, bench.Read(normed));
      const Matrix w_seen = Seen(2 * shape.outputs, shape.inputs, w);
      const Matrix sums = reference::MatMul(seen, w_seen, bias);
      const Matrix magnitude = reference::MagnitudeOfMatMul(seen, w_seen);
      const std::vector<float> actual = bench.Read(out);
      for (int64_t r = 0; r < shape.rows; ++r) {
        for (int64_t n = 0; n < shape.outputs; ++n) {
          const double up = sums.at(r, shape.outputs + n);
          const double gate = reference::Activate(activation, sums.at(r, n));
          // On CUDA the product may see a norm that is not the device's own, but as good.
          const double relative = OfSums(shape.inputs + 8) + (device().cuda ? 2 * OfNormed() : 0);
          // No gate is steeper than 1.13.
          const double bound =
              relative * (1.2 * (magnitude.at(r, n) + std::abs(bias[n])) * std::abs(up) +
                          std::abs(gate) * (magnitude.at(r, shape.outputs + n) +
                                            std::abs(bias[shape.outputs + n])) +
                          4 * std::abs(gate * up)) +
              (device().cuda ? OfErrorsOfBoth(relative * magnitude.at(r, n),
                                              relative * magnitude.at(r, shape.outputs + n)) +
                                   OfResults() * std::abs(gate * up) + 0x1p-24
                             : 1e-30);
          ASSERT_NEAR(actual[r * shape.outputs + n], gate * up, bound) << r << ", " << n;
        }
      }
    }
  }
}

// The four products with the same weights, of any rows of the same input.
class AllProducts {
 public:
  AllProducts(const DeviceUnderTest& device, DType dtype, int threads, int64_t inputs,
              int64_t outputs = 70)
      : outputs_(outputs),
        bench_(device, threads),
        in_(bench_.Floats(kRows, inputs, RandomFloats(kRows * inputs, 12))),
        w_(bench_.Pack(dtype, outputs, inputs, RandomFloats(outputs * inputs, 13))),
        gated_(bench_.Pack(dtype, 2 * outputs, inputs, RandomFloats(2 * outputs * inputs, 14))),
        norm_({bench_.Array(RandomFloats(inputs, 15)), 1e-5f}),
        out_(bench_.Floats(kRows, 4 * outputs)) {}

  std::vector<float> OfRows(int64_t first, int64_t count) {
    Stream& s = bench_.stream();
    const TensorView in = in_.Rows(first, count);
    const TensorView out = out_.Rows(first, count);
    s.ZeroAsync(out.data, out.bytes());
    ops::MatMul(s, out.Columns(0, outputs_), in, w_);
    ops::MatMulAdd(s, out.Columns(outputs_, outputs_), in, w_);
    ops::NormMatMul(s, out.Columns(2 * outputs_, outputs_), in, norm_, w_);
    ops::NormGatedMatMul(s, out.Columns(3 * outputs_, outputs_), in, norm_, gated_,
                         Activation::kSilu);
    return bench_.Read(out);
  }

  static constexpr int64_t kRows = 67;  // more than a chunk

 private:
  const int64_t outputs_;
  Workbench bench_;
  TensorView in_;
  Weight w_;
  Weight gated_;
  RmsNorm norm_;
  TensorView out_;
};

TEST_P(MatMulLawTest, RowsDoNotDependOnTheBatchOrTheThreads) {
  DeviceUnderTest on = device();
  on.deterministic = true;  // else a GPU takes what is fastest for so many rows
  // Within a block of the cache, and beyond; for tensor cores; and large enough to stream.
  std::vector<std::pair<int64_t, int64_t>> shapes = {{31, 70}, {1100, 70}, {1104, 70}};
  if (device().cuda) shapes.emplace_back(1088, 3210);
  for (const auto& [inputs, outputs] : shapes) {
    AllProducts one_thread(on, dtype(), 1, inputs, outputs);
    std::vector<float> alone;
    for (int64_t row = 0; row < AllProducts::kRows; ++row) {
      const auto one = one_thread.OfRows(row, 1);
      alone.insert(alone.end(), one.begin(), one.end());
    }
    for (const int threads : {1, 2, 3}) {
      AllProducts products(on, dtype(), threads, inputs, outputs);
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 32, 33, 37, 67}) {
        const std::vector<float> expected(alone.begin(), alone.begin() + rows * 4 * outputs);
        ASSERT_EQ(products.OfRows(0, rows), expected) << rows << " rows, " << threads << " threads";
      }
    }
  }
}

// The same bits on every machine; only native products of bf16 round in their own way.
TEST_P(MatMulLawTest, InstructionSetsAgreeToTheBit) {
  if (device().cuda) GTEST_SKIP() << "a law of the CPU";
  if (device().isa == "avx512_bf16" && dtype() == DType::kBF16) GTEST_SKIP();
  const DeviceUnderTest scalar = {"cpu_scalar", "scalar"};
  EXPECT_EQ(AllProducts(device(), dtype(), 1, 31).OfRows(0, 9),
            AllProducts(scalar, dtype(), 1, 31).OfRows(0, 9));
}

TEST_P(MatMulLawTest, NotANumberStaysInItsRow) {
  Workbench bench(device());
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

// A GPU begins a product while the one before still runs, with weights, which depend on nobody: the
// same bits as with a pause behind each. Large weights, which stream.
TEST_P(MatMulTest, ProductsMayFollowEachOther) {
  if (!device().cuda) GTEST_SKIP() << "a CPU begins nothing early";
  constexpr int64_t kHidden = 1088;
  constexpr int64_t kInner = 3136;
  constexpr int64_t kWide = 5000;
  for (const int64_t rows : {1, 3, 8, 12, 16, 17, 32}) {
    SCOPED_TRACE(rows);
    Workbench bench(device());
    Stream& s = bench.stream();
    const auto start = RandomFloats(rows * kHidden, 20);
    const RmsNorm norm = {bench.Array(RandomFloats(kHidden, 21)), 1e-5f};
    const auto pack = [&](int64_t outputs, int64_t inputs, int seed) {
      return bench.Pack(dtype(), outputs, inputs, RandomFloats(outputs * inputs, seed, 0.1f),
                        RandomFloats(outputs, seed + 1));
    };
    const Weight qkv = pack(kInner, kHidden, 22);
    const Weight attended = pack(kHidden, kInner, 24);
    const Weight gated = pack(2 * kInner, kHidden, 26);
    const Weight down = pack(kHidden, kInner, 28);
    const Weight head = pack(kWide, kHidden, 30);
    const auto run = [&](bool pause) {
      const TensorView hidden = bench.Floats(rows, kHidden, start);
      const TensorView inner = bench.Floats(rows, kInner);
      const TensorView logits = bench.Logits(rows, kWide, std::vector<float>(rows * kWide));
      const auto wait = [&] {
        if (pause) s.Synchronize();
      };
      for (int layer = 0; layer < 3; ++layer) {
        ops::NormMatMul(s, inner, hidden, norm, qkv);
        wait();
        ops::MatMulAdd(s, hidden, inner, attended);
        wait();
        ops::NormGatedMatMul(s, inner, hidden, norm, gated, Activation::kSilu);
        wait();
        ops::MatMulAdd(s, hidden, inner, down);
        wait();
      }
      ops::NormMatMul(s, logits, hidden, norm, head);
      return bench.Read(logits);
    };
    const std::vector<float> expected = run(true);
    for (int i = 0; i < 10; ++i) ASSERT_EQ(run(false), expected) << "time " << i;
  }
}

// Devices with the types of weights that they have kernels for; CUDA computes in that of the
// weights.
std::vector<std::tuple<DeviceUnderTest, DType>> Cases() {
  std::vector<std::tuple<DeviceUnderTest, DType>> cases;
  for (const DeviceUnderTest& device : CpusUnderTest()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) cases.emplace_back(device, dtype);
  }
  for (const DeviceUnderTest& device : CudasUnderTest()) {
    cases.emplace_back(device, device.activations);
  }
  return cases;
}

std::vector<std::tuple<DeviceUnderTest, DType>> LawCases() {
  std::vector<std::tuple<DeviceUnderTest, DType>> cases = Cases();
  for (const DeviceUnderTest& device : DevicesUnderTest()) {
    for (const DType dtype : {DType::kQ8_0, DType::kQ4_1}) cases.emplace_back(device, dtype);
  }
  return cases;
}

std::string NameOf(const testing::TestParamInfo<std::tuple<DeviceUnderTest, DType>>& info) {
  return std::get<0>(info.param).name + "_" + std::string(Name(std::get<1>(info.param)));
}

INSTANTIATE_TEST_SUITE_P(Devices, MatMulTest, testing::ValuesIn(Cases()), NameOf);
INSTANTIATE_TEST_SUITE_P(Devices, MatMulLawTest, testing::ValuesIn(LawCases()), NameOf);

}  // namespace
}  // namespace keyline
