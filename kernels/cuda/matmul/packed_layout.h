// How CUDA arranges a packed weight (kernels/ops/weight_blocks.h): tiles of 8 outputs and 64
// inputs, in the order in which the lanes of a warp multiply them, so that a tile is one stretch of
// memory and a lane's share of it one load.
//
//   [ceil(rows / 8)][ceil(cols / 64)] of TileQ8 or TileQ4
// Lane l has of each half of 32 inputs the eight from 8 * (l % 4) on, of output l / 4. Outputs and
// inputs past the end have code 0, scale 0 and min 0.
#pragma once

#include <cstdint>

namespace keyline::cuda {

constexpr int kPackedRows = 8;
constexpr int kPackedCols = 64;
constexpr int kPackedHalves = kPackedCols / 32;

// int8. Codes are shifted by 128: kernels want them unsigned.
struct alignas(16) TileQ8 {
  uint8_t codes[32][kPackedHalves][8];
  uint16_t scales[kPackedRows][kPackedHalves];  // half precision
};
static_assert(sizeof(TileQ8) == 544);

// int4. Of a lane's eight codes of a half, number j is in the nibble NibbleOf(j) of a 32-bit word,
// so that (word >> 4 * i) & 0x000f000f are numbers 2 * i and 2 * i + 1.
struct alignas(16) TileQ4 {
  uint32_t codes[32][kPackedHalves];
  uint16_t scales[kPackedRows][kPackedHalves][2];  // of a half: scale and min
};
static_assert(sizeof(TileQ4) == 320);

constexpr int NibbleOf(int j) { return j / 2 + (j % 2) * 4; }

constexpr int64_t PackedTilesOf(int64_t cols) { return (cols + kPackedCols - 1) / kPackedCols; }

// Where element `col` of a tile lies.
constexpr int HalfOf(int col) { return col / 32; }
constexpr int LaneOf(int row, int col) { return row * 4 + col % 32 / 8; }

}  // namespace keyline::cuda
