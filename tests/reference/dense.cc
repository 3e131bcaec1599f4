#include "tests/reference/dense.h"

#include <cmath>

namespace keyline::reference {

Matrix MakeMatrix(int64_t rows, int64_t cols) {
  return {rows, cols, std::vector<double>(rows * cols, 0.0)};
}

Matrix FromFloats(int64_t rows, int64_t cols, const std::vector<float>& values) {
  Matrix m = MakeMatrix(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) m.values[i] = static_cast<double>(values[i]);
  return m;
}

double RoundMantissa(double x, int bits) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent = 0;
  const double fraction = std::frexp(x, &exponent);  // in [0.5, 1)
  return std::ldexp(std::nearbyint(std::ldexp(fraction, bits + 1)), exponent - bits - 1);
}

Matrix RoundToBF16(Matrix m) {
  for (double& x : m.values) x = RoundMantissa(x, 7);
  return m;
}

Matrix MatMul(const Matrix& in, const Matrix& w, const std::vector<float>& bias) {
  Matrix out = MakeMatrix(in.rows, w.rows);
  for (int64_t r = 0; r < in.rows; ++r) {
    for (int64_t n = 0; n < w.rows; ++n) {
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[n]);
      for (int64_t k = 0; k < in.cols; ++k) sum += in.at(r, k) * w.at(n, k);
      out.at(r, n) = sum;
    }
  }
  return out;
}

Matrix MagnitudeOfMatMul(const Matrix& in, const Matrix& w) {
  Matrix out = MakeMatrix(in.rows, w.rows);
  for (int64_t r = 0; r < in.rows; ++r) {
    for (int64_t n = 0; n < w.rows; ++n) {
      for (int64_t k = 0; k < in.cols; ++k) {
        out.at(r, n) += std::abs(in.at(r, k)) * std::abs(w.at(n, k));
      }
    }
  }
  return out;
}

Matrix RmsNorm(const Matrix& in, const std::vector<float>& weight, double eps) {
  Matrix out = MakeMatrix(in.rows, in.cols);
  for (int64_t r = 0; r < in.rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < in.cols; ++c) squares += in.at(r, c) * in.at(r, c);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(in.cols) + eps);
    for (int64_t c = 0; c < in.cols; ++c) {
      out.at(r, c) = in.at(r, c) * scale * static_cast<double>(weight[c]);
    }
  }
  return out;
}

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  }
  return 0;
}

}  // namespace keyline::reference
