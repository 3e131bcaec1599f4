#include "tests/reference/packed.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace keyline::reference {
namespace {

constexpr int64_t kBlock = 32;

double Half(const uint8_t* bytes) {
  const int bits = bytes[0] | bytes[1] << 8;
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
  if (exponent == 31) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

struct Element {
  double scaled;  // scale * code
  double min;
};

Element ElementOf(DType dtype, const uint8_t* block, int64_t i) {
  if (dtype == DType::kQ8_0) return {Half(block) * static_cast<int8_t>(block[2 + i]), 0};
  const int pair = block[4 + i % 16];
  return {Half(block) * (i < 16 ? pair % 16 : pair / 16), Half(block + 2)};
}

template <class F>
Matrix Each(DType dtype, int64_t rows, int64_t cols, const std::vector<uint8_t>& blocks,
            const F& f) {
  const int64_t of_row = (cols + kBlock - 1) / kBlock;
  const int64_t bytes = dtype == DType::kQ8_0 ? 34 : 20;
  Matrix m = MakeMatrix(rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const uint8_t* block = blocks.data() + (r * of_row + c / kBlock) * bytes;
      m.at(r, c) = f(ElementOf(dtype, block, c % kBlock));
    }
  }
  return m;
}

double LargestOfBlock(const Matrix& m, int64_t r, int64_t c) {
  double largest = 0;
  for (int64_t k = c / kBlock * kBlock; k < std::min(m.cols, (c / kBlock + 1) * kBlock); ++k) {
    largest = std::max(largest, std::abs(m.at(r, k)));
  }
  return largest;
}

}  // namespace

Matrix FromBlocks(DType dtype, int64_t rows, int64_t cols, const std::vector<uint8_t>& blocks) {
  return Each(dtype, rows, cols, blocks, [](Element e) { return e.scaled + e.min; });
}

Matrix MagnitudeOfBlocks(DType dtype, int64_t rows, int64_t cols,
                         const std::vector<uint8_t>& blocks) {
  return Each(dtype, rows, cols, blocks,
              [](Element e) { return std::abs(e.scaled) + std::abs(e.min); });
}

// Which code a number gets is decided in float32, as the kernels document it.
Matrix ToInt8Blocks(int64_t rows, int64_t cols, const std::vector<float>& values) {
  const Matrix m = FromFloats(rows, cols, values);
  Matrix out = MakeMatrix(rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const auto largest = static_cast<float>(LargestOfBlock(m, r, c));
      if (largest == 0) continue;
      const float code = std::nearbyint(values[r * cols + c] * (127.0f / largest));
      out.at(r, c) = static_cast<double>(code) * static_cast<double>(largest / 127.0f);
    }
  }
  return out;
}

Matrix StepsOfInt8Blocks(const Matrix& m) {
  Matrix out = MakeMatrix(m.rows, m.cols);
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c) out.at(r, c) = LargestOfBlock(m, r, c) / 254;
  }
  return out;
}

}  // namespace keyline::reference
