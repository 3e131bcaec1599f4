// How the CPU lays out a Weight: tiles of 16 outputs, one behind the other, so that the lanes of a
// vector are outputs and each output is one chain of multiply-adds over the inputs.
//
//   f32:  [ceil(rows / 16)][cols][16]
//   bf16: [ceil(rows / 16)][ceil(cols / 2)][16][2]: 16 pairs of inputs, for vdpbf16ps
// Rows and inputs past the end are zero. A step is 64 bytes of a tile in either. Another format of
// weights (blocks of integers with scales) would be another case here and another tile kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/weight.h"

namespace keyline::cpu {

struct WeightLayout {
  int64_t tiles = 0;
  int64_t steps = 0;  // of a tile
  int64_t tile_bytes = 0;
};

// REQUIRES: dtype is kF32 or kBF16.
WeightLayout LayoutOf(DType dtype, int64_t rows, int64_t cols);

size_t PackedBytes(DType dtype, int64_t rows, int64_t cols);
void PackRows(const Weight& to, int64_t first, int64_t count, const float* source);

// Writes row `row` of a packed weight, times `scale`, to out[cols].
void UnpackRow(const Weight& from, int64_t row, float scale, float* out);

}  // namespace keyline::cpu
