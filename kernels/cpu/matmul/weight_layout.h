// How the CPU lays out a Weight: tiles of 16 outputs, one behind the other, so that the lanes of a
// vector are outputs and each output is one chain of multiply-adds over the inputs.
//
//   f32:  [ceil(rows / 16)][cols][16]
//   bf16: [ceil(rows / 16)][ceil(cols / 2)][16][2]: 16 pairs of inputs, for vdpbf16ps
//   q8_0: [ceil(rows / 16)][ceil(cols / 32)] of TileBlockQ8 (kernels/cpu/isa/kernel_set.h)
//   q4_1: the same of TileBlockQ4
// Rows and inputs past the end are zero. A step is what a tile kernel takes at a time: 64 bytes of
// floats, or one block of each of 16 rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/weight.h"

namespace keyline::cpu {

struct WeightLayout {
  int64_t tiles = 0;
  int64_t steps = 0;  // of a tile
  int64_t step_bytes = 0;
  int64_t tile_bytes = 0;
};

// REQUIRES: dtype is kF32, kBF16, kQ8_0 or kQ4_1.
WeightLayout LayoutOf(DType dtype, int64_t rows, int64_t cols);

size_t PackedBytes(DType dtype, int64_t rows, int64_t cols);
void PackRows(const Weight& to, int64_t first, int64_t count, const float* source);
void PackBlocks(const Weight& to, int64_t first, int64_t count, const std::byte* source);

// Writes row `row` of a packed weight, times `scale`, to out[cols].
void UnpackRow(const Weight& from, int64_t row, float scale, float* out);

}  // namespace keyline::cpu
