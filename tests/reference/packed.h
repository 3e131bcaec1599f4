// The oracle of packed weights: blocks read element by element in double, and rows of activations
// as the CPU's products of integers see them. Shares no code with the kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/device/dtype.h"
#include "tests/reference/dense.h"

namespace keyline::reference {

// [rows, cols] of GGUF blocks of `dtype` (kQ8_0 or kQ4_1), a row's last block filled up.
Matrix FromBlocks(DType dtype, int64_t rows, int64_t cols, const std::vector<uint8_t>& blocks);
// |scale * code| + |min| of the same: what errors of rounding are relative to.
Matrix MagnitudeOfBlocks(DType dtype, int64_t rows, int64_t cols,
                         const std::vector<uint8_t>& blocks);

// Every 32 numbers of a row as scale * code, the largest becoming 127 scales.
Matrix ToInt8Blocks(int64_t rows, int64_t cols, const std::vector<float>& values);
// What that changes a number by at most: 1/254 of its block's largest.
Matrix StepsOfInt8Blocks(const Matrix& m);

}  // namespace keyline::reference
