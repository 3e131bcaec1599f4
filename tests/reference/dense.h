// The oracle of the dense operations: plain loops in double, sharing no code with the kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops/batch.h"

namespace keyline::reference {

struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> values;  // row major

  double at(int64_t r, int64_t c) const { return values[r * cols + c]; }
  double& at(int64_t r, int64_t c) { return values[r * cols + c]; }
};

Matrix MakeMatrix(int64_t rows, int64_t cols);
Matrix FromFloats(int64_t rows, int64_t cols, const std::vector<float>& values);

// To the nearest number with `bits` bits of mantissa besides the leading one (bf16: 7), ties to
// even.
double RoundMantissa(double x, int bits);
Matrix RoundToBF16(Matrix m);

// in * w^T + bias; bias may be empty.
Matrix MatMul(const Matrix& in, const Matrix& w, const std::vector<float>& bias);
// Sum over k of |in| * |w|: what errors of rounding are relative to.
Matrix MagnitudeOfMatMul(const Matrix& in, const Matrix& w);

Matrix RmsNorm(const Matrix& in, const std::vector<float>& weight, double eps);

double Activate(Activation activation, double x);

}  // namespace keyline::reference
