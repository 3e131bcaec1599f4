// Products with packed weights against the oracle: every format, instruction set and device. The
// laws that hold for all weights are in matmul_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/device/half.h"
#include "kernels/ops/ops.h"
#include "kernels/ops/weight_blocks.h"
#include "tests/kernels/device_under_test.h"
#include "tests/reference/dense.h"
#include "tests/reference/packed.h"

namespace keyline {
namespace {

using reference::Matrix;

constexpr double kHalfUlp = 0x1p-24;

struct Shape {
  int64_t rows, outputs, inputs;
};

// Odd on purpose, and around the sizes at which devices change their ways: tiles of 16 (8 on CUDA)
// outputs, blocks of 32 inputs, 8, 32 and 64 rows, more inputs than one block of the cache.
const Shape kShapes[] = {{1, 1, 1},    {1, 17, 3},    {2, 33, 31},   {3, 16, 576},
                         {4, 49, 64},  {5, 48, 577},  {7, 100, 40},  {8, 160, 96},
                         {9, 24, 72},  {33, 40, 128}, {37, 33, 32},  {64, 48, 192},
                         {70, 80, 64}, {130, 70, 9},  {1, 40, 8200}, {2, 320, 1536}};

std::vector<uint8_t> Quantized(DType dtype, int64_t rows, int64_t cols,
                               const std::vector<float>& values) {
  const int64_t row_bytes = BlockRowBytes(dtype, cols);
  std::vector<uint8_t> blocks(rows * row_bytes);
  for (int64_t r = 0; r < rows; ++r) {
    QuantizeRow(dtype, values.data() + r * cols, cols,
                reinterpret_cast<std::byte*>(blocks.data()) + r * row_bytes);
  }
  return blocks;
}

// Blocks with all codes there are, scales and mins of either sign.
std::vector<uint8_t> RandomBlocks(DType dtype, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> scale(-1.0f, 1.0f);
  const int64_t block_bytes = TraitsOf(dtype).block_bytes;
  std::vector<uint8_t> blocks(rows * BlockRowBytes(dtype, cols));
  for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random());
  for (size_t at = 0; at < blocks.size(); at += block_bytes) {
    for (int half = 0; half < (dtype == DType::kQ8_0 ? 1 : 2); ++half) {
      const uint16_t bits = ToHalf(scale(random));
      std::memcpy(&blocks[at + 2 * half], &bits, sizeof(bits));
    }
  }
  return blocks;
}

class PackedMatMulTest : public testing::TestWithParam<std::tuple<DeviceUnderTest, DType>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(device()); }

  const DeviceUnderTest& device() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  // Activations as the product sees them: the CPU's are integers of 8 bits.
  Matrix Seen(int64_t rows, int64_t cols, const std::vector<float>& values) const {
    if (!device().cuda) return reference::ToInt8Blocks(rows, cols, values);
    return reference::FromFloats(rows, cols, Rounded(device().activations, values));
  }
  // What a sum may be off by, relative to the sum of the magnitudes. CPU: the integers' sums are
  // exact, each block adds two products, of three roundings each. CUDA: tensor cores cut off where
  // others round, and many rows meet weights that were rounded to the activations' type.
  double OfSums(int64_t inputs) const {
    if (device().cuda) return 2 * kHalfUlp * static_cast<double>(inputs + 8) + device().half_ulp();
    return kHalfUlp * static_cast<double>(2 * BlocksOf(inputs) + 8);
  }
  double OfResults() const { return device().activations == DType::kF32 ? 0 : device().half_ulp(); }
  double Least() const { return device().activations == DType::kF16 ? 0x1p-24 : 1e-30; }
  void ExpectClose(const std::vector<float>& actual, const Matrix& expected,
                   const Matrix& magnitude, int64_t inputs) const {
    ASSERT_EQ(actual.size(), expected.values.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      const double size = std::abs(expected.values[i]);
      const double bound =
          OfSums(inputs) * (magnitude.values[i] + size) + OfResults() * size + Least();
      ASSERT_NEAR(actual[i], expected.values[i], bound) << "element " << i;
    }
  }
};

TEST_P(PackedMatMulTest, IsWithinTheErrorOfSummation) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message()
                 << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
    const auto in = RandomFloats(shape.rows * shape.inputs, 1);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 2);
    const auto bias = RandomFloats(shape.outputs, 3);
    const auto before = Rounded(device().activations, RandomFloats(shape.rows * shape.outputs, 4));
    const auto blocks = Quantized(dtype(), shape.outputs, shape.inputs, w);
    const Matrix in_seen = Seen(shape.rows, shape.inputs, in);
    const Matrix w_seen = reference::FromBlocks(dtype(), shape.outputs, shape.inputs, blocks);
    const Matrix magnitude = reference::MagnitudeOfMatMul(
        in_seen, reference::MagnitudeOfBlocks(dtype(), shape.outputs, shape.inputs, blocks));

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

// Every code, -128 too, and scales of either sign, as files may have them; logits are float32.
TEST_P(PackedMatMulTest, TakesBlocksOfFilesAsTheyAre) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message()
                 << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
    const auto in = RandomFloats(shape.rows * shape.inputs, 5);
    const auto blocks = RandomBlocks(dtype(), shape.outputs, shape.inputs, 6);
    const Matrix in_seen = Seen(shape.rows, shape.inputs, in);
    const Matrix w_seen = reference::FromBlocks(dtype(), shape.outputs, shape.inputs, blocks);
    const Matrix magnitude = reference::MagnitudeOfMatMul(
        in_seen, reference::MagnitudeOfBlocks(dtype(), shape.outputs, shape.inputs, blocks));
    const Matrix expected = reference::MatMul(in_seen, w_seen, {});
    Workbench bench(device());
    const TensorView out =
        bench.Logits(shape.rows, shape.outputs, std::vector<float>(shape.rows * shape.outputs));
    ops::MatMul(bench.stream(), out, bench.Floats(shape.rows, shape.inputs, in),
                bench.PackBlocks(dtype(), shape.outputs, shape.inputs, blocks));
    const std::vector<float> actual = bench.Read(out);
    for (size_t i = 0; i < actual.size(); ++i) {
      const double bound =
          OfSums(shape.inputs) * (magnitude.values[i] + std::abs(expected.values[i])) + 1e-30;
      ASSERT_NEAR(actual[i], expected.values[i], bound) << "element " << i;
    }
  }
}

// Against activations that nobody rounded: the price of integers is at most 1/254 of the largest
// of each block of a row, for each weight that it meets.
TEST_P(PackedMatMulTest, NormThenProductIsWithinTheErrorOfIntegers) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message()
                 << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
    const auto in = RandomFloats(shape.rows * shape.inputs, 7, 3.0f);
    const auto w = RandomFloats(shape.outputs * shape.inputs, 8);
    const auto norm_weight = RandomFloats(shape.inputs, 9);
    Workbench bench(device());
    const TensorView out = bench.Floats(shape.rows, shape.outputs);
    ops::NormMatMul(bench.stream(), out, bench.Floats(shape.rows, shape.inputs, in),
                    {bench.Array(norm_weight), 1e-5f},
                    bench.Pack(dtype(), shape.outputs, shape.inputs, w));
    const auto blocks = Quantized(dtype(), shape.outputs, shape.inputs, w);
    const Matrix w_seen = reference::FromBlocks(dtype(), shape.outputs, shape.inputs, blocks);
    const Matrix w_size =
        reference::MagnitudeOfBlocks(dtype(), shape.outputs, shape.inputs, blocks);
    const Matrix normed = reference::RmsNorm(
        reference::FromFloats(shape.rows, shape.inputs, Rounded(device().activations, in)),
        norm_weight, 1e-5f);
    const Matrix expected = reference::MatMul(normed, w_seen, {});
    const Matrix magnitude = reference::MagnitudeOfMatMul(normed, w_size);
    Matrix steps = reference::MakeMatrix(shape.rows, shape.outputs);
    if (!device().cuda) {
      steps = reference::MagnitudeOfMatMul(reference::StepsOfInt8Blocks(normed), w_seen);
    }
    const std::vector<float> actual = bench.Read(out);
    // The norm is off by a few roundings of float32, and on CUDA rounded to activations.
    const double relative = 2 * OfSums(shape.inputs) + 4e-6 + (device().cuda ? OfResults() : 0);
    for (size_t i = 0; i < actual.size(); ++i) {
      const double bound = relative * magnitude.values[i] + 1.001 * steps.values[i] +
                           (OfResults() + kHalfUlp) * std::abs(expected.values[i]) + Least();
      ASSERT_NEAR(actual[i], expected.values[i], bound) << "element " << i;
    }
  }
}

TEST_P(PackedMatMulTest, GatedProductMatchesTheOracle) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(testing::Message()
                 << shape.rows << " x " << shape.outputs << " x " << shape.inputs);
    const auto in = RandomFloats(shape.rows * shape.inputs, 10);
    const auto w = RandomFloats(2 * shape.outputs * shape.inputs, 11, 0.2f);
    const auto bias = RandomFloats(2 * shape.outputs, 12);
    const auto norm_weight = RandomFloats(shape.inputs, 13);
    Workbench bench(device());
    const RmsNorm norm = {bench.Array(norm_weight), 1e-5f};
    const TensorView x = bench.Floats(shape.rows, shape.inputs, in);
    const TensorView out = bench.Floats(shape.rows, shape.outputs);
    ops::NormGatedMatMul(bench.stream(), out, x, norm,
                         bench.Pack(dtype(), 2 * shape.outputs, shape.inputs, w, bias),
                         Activation::kSilu);
    // What the product sees of the norm depends on its last bit: take the device's own norm.
    const TensorView normed = bench.Floats(shape.rows, shape.inputs);
    ops::Norm(bench.stream(), normed, x, norm);
    const Matrix seen = Seen(shape.rows, shape.inputs, bench.Read(normed));
    const auto blocks = Quantized(dtype(), 2 * shape.outputs, shape.inputs, w);
    const Matrix w_seen = reference::FromBlocks(dtype(), 2 * shape.outputs, shape.inputs, blocks);
    const Matrix sums = reference::MatMul(seen, w_seen, bias);
    const Matrix magnitude = reference::MagnitudeOfMatMul(
        seen, reference::MagnitudeOfBlocks(dtype(), 2 * shape.outputs, shape.inputs, blocks));
    // On CUDA the product may see a norm that is not the device's own, but as good; and the gate
    // and the up projection may be rounded on their way to each other.
    const double relative = OfSums(shape.inputs) + (device().cuda ? 3 * OfResults() : 0);
    const std::vector<float> actual = bench.Read(out);
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t n = 0; n < shape.outputs; ++n) {
        const int64_t u = shape.outputs + n;
        const double gate = reference::Activate(Activation::kSilu, sums.at(r, n));
        const double up = sums.at(r, u);
        const double of_gate = relative * (magnitude.at(r, n) + std::abs(bias[n]));
        const double of_up = relative * (magnitude.at(r, u) + std::abs(bias[u]));
        // No gate is steeper than 1.13.
        const double bound = 1.2 * of_gate * std::abs(up) + of_up * std::abs(gate) +
                             1.2 * of_gate * of_up +
                             (8 * kHalfUlp + OfResults()) * std::abs(gate * up) + Least();
        ASSERT_NEAR(actual[r * shape.outputs + n], gate * up, bound) << r << ", " << n;
      }
    }
  }
}

TEST_P(PackedMatMulTest, EmbeddingReadsTheBlocksNumbers) {
  for (const int64_t cols : {1, 31, 32, 33, 64, 200}) {
    constexpr int64_t kRows = 37;
    const auto blocks = RandomBlocks(dtype(), kRows, cols, 14);
    const Matrix expected = reference::FromBlocks(dtype(), kRows, cols, blocks);
    const Matrix size = reference::MagnitudeOfBlocks(dtype(), kRows, cols, blocks);
    Workbench bench(device());
    std::vector<int32_t> ids(kRows);
    for (int64_t r = 0; r < kRows; ++r) ids[r] = static_cast<int32_t>(kRows - 1 - r);
    Batch batch;
    batch.tokens = kRows;
    batch.token_ids = bench.Ints(ids);
    const TensorView out = bench.Floats(kRows, cols);
    ops::Embed(bench.stream(), out, batch, bench.PackBlocks(dtype(), kRows, cols, blocks), 0.5f);
    const std::vector<float> actual = bench.Read(out);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const double want = 0.5 * expected.at(kRows - 1 - r, c);
        const double bound =
            2 * kHalfUlp * size.at(kRows - 1 - r, c) + OfResults() * std::abs(want) + Least();
        ASSERT_NEAR(actual[r * cols + c], want, bound) << r << ", " << c;
      }
    }
  }
}

std::vector<std::tuple<DeviceUnderTest, DType>> Cases() {
  std::vector<std::tuple<DeviceUnderTest, DType>> cases;
  for (const DeviceUnderTest& device : DevicesUnderTest()) {
    for (const DType dtype : {DType::kQ8_0, DType::kQ4_1}) cases.emplace_back(device, dtype);
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Devices, PackedMatMulTest, testing::ValuesIn(Cases()),
                         [](const auto& info) {
                           return std::get<0>(info.param).name + "_" +
                                  std::string(Name(std::get<1>(info.param)));
                         });

// ---- Quantising -------------------------------------------------------------------------------

double ErrorOf(DType dtype, int64_t cols, const std::vector<float>& row, size_t i) {
  const Matrix m = reference::FromBlocks(dtype, 1, cols, Quantized(dtype, 1, cols, row));
  return std::abs(m.values[i] - row[i]);
}

TEST(QuantizeRow, Int8IsOffByHalfAScaleAtMost) {
  for (const float size : {1e-3f, 1.0f, 3e4f}) {
    const auto row = RandomFloats(77, 15, size);
    const Matrix steps = reference::StepsOfInt8Blocks(reference::FromFloats(1, 77, row));
    for (size_t i = 0; i < row.size(); ++i) {
      // A scale of 16 bits is off by 2^-11: that much of the number itself.
      EXPECT_LE(ErrorOf(DType::kQ8_0, 77, row, i),
                steps.values[i] * (1 + 0x1p-10) + 0x1p-11 * std::abs(row[i]) + 1e-6)
          << i;
    }
  }
}

// Moving scale and min must not make a block worse than the plain choice: codes from the least to
// the largest, off by at most half a step.
TEST(QuantizeRow, Int4IsAtLeastAsGoodAsLeastToLargest) {
  const auto row = RandomFloats(32 * 40, 16);
  const Matrix m =
      reference::FromBlocks(DType::kQ4_1, 1, 32 * 40, Quantized(DType::kQ4_1, 1, 32 * 40, row));
  double of_all = 0, of_plain = 0;
  for (int block = 0; block < 40; ++block) {
    const auto begin = row.begin() + 32 * block;
    const auto [least, largest] = std::minmax_element(begin, begin + 32);
    const double step = (static_cast<double>(*largest) - *least) / 15;
    double squares = 0, plain = 0;
    for (int i = 32 * block; i < 32 * (block + 1); ++i) {
      const double off = m.values[i] - row[i];
      squares += off * off;
      const double code = std::nearbyint((row[i] - *least) / step);
      plain += std::pow(*least + step * code - row[i], 2);
    }
    EXPECT_LE(squares, plain * 1.02 + 1e-6) << block;  // scales of 16 bits
    of_all += squares;
    of_plain += plain;
  }
  EXPECT_LT(of_all, 0.97 * of_plain);
}

TEST(QuantizeRow, KeepsWhatTheFormatHolds) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_1}) {
    std::vector<float> row(40, 0.0f);
    for (size_t i = 0; i < row.size(); ++i) EXPECT_EQ(ErrorOf(dtype, 40, row, i), 0);
    row.assign(40, 0.75f);
    for (size_t i = 0; i < row.size(); ++i) EXPECT_LE(ErrorOf(dtype, 40, row, i), 0.75 * 0x1p-11);
    for (size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(i % 16);
    row[0] = dtype == DType::kQ8_0 ? 127.0f : 0.0f;
    row[32] = dtype == DType::kQ8_0 ? -127.0f : 0.0f;
    for (size_t i = 0; i < 32; ++i) EXPECT_EQ(ErrorOf(dtype, 40, row, i), 0) << i;
  }
}

TEST(QuantizeRow, BlocksThatAreNotFiniteShow) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_1}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      auto row = RandomFloats(64, 17);
      row[40] = bad;
      const Matrix m = reference::FromBlocks(dtype, 1, 64, Quantized(dtype, 1, 64, row));
      for (size_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(m.values[i]), i >= 32) << i;
    }
  }
}

TEST(QuantizeRow, ScalesThatDoNotFitSaturate) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_1}) {
    auto row = RandomFloats(32, 18, 1e30f);
    const Matrix m = reference::FromBlocks(dtype, 1, 32, Quantized(dtype, 1, 32, row));
    for (double value : m.values) EXPECT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace keyline
