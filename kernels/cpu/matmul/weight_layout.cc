#include "kernels/cpu/matmul/weight_layout.h"

#include <glog/logging.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cpu/isa/kernel_set.h"
#include "kernels/device/half.h"
#include "kernels/ops/weight_blocks.h"

namespace keyline::cpu {
namespace {

constexpr int64_t kTileRows = kLanes;
constexpr int64_t kStepBytes = 64;

uint16_t ToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>((bits | 0x400000u) >> 16);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

float FromBF16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

template <class T>
T Convert(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    return ToBF16(x);
  }
}

// Inputs that lie side by side in a step: 1 (float) or 2 (bf16).
template <class T>
constexpr int64_t kGroup = sizeof(float) / sizeof(T);

// Writes rows [lane, lane + count) of one tile.
template <class T>
void PackTileRows(T* tile, int64_t lane, int64_t count, const float* source, int64_t cols) {
  constexpr int64_t kWidth = kGroup<T>;
  const int64_t whole = cols / kWidth * kWidth;
  T* out = tile + lane * kWidth;
  for (int64_t k = 0; k < whole; k += kWidth, out += kTileRows * kWidth) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t j = 0; j < kWidth; ++j) {
        out[r * kWidth + j] = Convert<T>(source[r * cols + k + j]);
      }
    }
  }
  if (whole == cols) return;
  for (int64_t r = 0; r < count; ++r) {  // only bf16 with an odd number of inputs
    out[r * kWidth] = Convert<T>(source[r * cols + whole]);
    out[r * kWidth + 1] = 0;
  }
}

template <class T>
void PackTiles(const Weight& to, int64_t first, int64_t count, const float* source) {
  const WeightLayout layout = LayoutOf(to.dtype, to.rows, to.cols);
  const auto tile_of = [&](int64_t row) {
    return reinterpret_cast<T*>(static_cast<std::byte*>(to.data) +
                                row / kTileRows * layout.tile_bytes);
  };
  const int64_t end = first + count;
  for (int64_t row = first; row < end;) {
    const int64_t lane = row % kTileRows;
    const int64_t here = std::min(kTileRows - lane, end - row);
    PackTileRows(tile_of(row), lane, here, source + (row - first) * to.cols, to.cols);
    row += here;
  }
  if (end != to.rows || end % kTileRows == 0) return;
  for (int64_t k = 0; k < layout.steps; ++k) {  // lanes without a row
    T* step = tile_of(end) + k * kTileRows * kGroup<T>;
    std::fill(step + end % kTileRows * kGroup<T>, step + kTileRows * kGroup<T>, T{});
  }
}

// One row's block among those of its tile.
void PutBlock(TileBlockQ8& to, int64_t lane, const BlockQ8& from) {
  to.scale[lane] = from.scale;
  for (int g = 0; g < kBlockGroups; ++g) {
    std::memcpy(to.codes[g][lane], from.codes + g * kGroupInputs, kGroupInputs);
  }
}

void PutBlock(TileBlockQ4& to, int64_t lane, const BlockQ4& from) {
  to.scale[lane] = from.scale;
  to.min[lane] = from.min;
  for (int g = 0; g < kBlockGroups / 2; ++g) {
    std::memcpy(to.codes[g][lane], from.codes + g * kGroupInputs, kGroupInputs);
  }
}

template <class TileBlock, class Block>
void PutRows(const Weight& to, int64_t first, int64_t count, const std::byte* source) {
  const int64_t blocks = BlocksOf(to.cols);
  auto* const tiles = static_cast<TileBlock*>(to.data);
  const auto put = [&](int64_t row, int64_t b, const Block& block) {
    PutBlock(tiles[row / kTileRows * blocks + b], row % kTileRows, block);
  };
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      Block block;
      std::memcpy(&block, source + (row * blocks + b) * sizeof(Block), sizeof(Block));
      put(first + row, b, block);
    }
  }
  if (first + count != to.rows) return;
  for (int64_t row = to.rows; row % kTileRows != 0; ++row) {  // lanes without a row
    for (int64_t b = 0; b < blocks; ++b) put(row, b, Block{});
  }
}

void UnpackQ8(const TileBlockQ8* blocks, int64_t lane, int64_t cols, float scale, float* out) {
  for (int64_t k = 0; k < cols; ++k) {
    const TileBlockQ8& block = blocks[k / kWeightBlock];
    const int64_t i = k % kWeightBlock;
    const int code = block.codes[i / kGroupInputs][lane][i % kGroupInputs];
    out[k] = FromHalf(block.scale[lane]) * static_cast<float>(code) * scale;
  }
}

void UnpackQ4(const TileBlockQ4* blocks, int64_t lane, int64_t cols, float scale, float* out) {
  for (int64_t k = 0; k < cols; ++k) {
    const TileBlockQ4& block = blocks[k / kWeightBlock];
    const int64_t i = k % (kWeightBlock / 2);
    const int pair = block.codes[i / kGroupInputs][lane][i % kGroupInputs];
    const int code = k % kWeightBlock < kWeightBlock / 2 ? pair & 15 : pair >> 4;
    out[k] = (FromHalf(block.scale[lane]) * static_cast<float>(code) + FromHalf(block.min[lane])) *
             scale;
  }
}

}  // namespace

WeightLayout LayoutOf(DType dtype, int64_t rows, int64_t cols) {
  WeightLayout layout;
  layout.tiles = (rows + kTileRows - 1) / kTileRows;
  switch (dtype) {
    case DType::kF32:
      layout.steps = cols;
      layout.step_bytes = kStepBytes;
      break;
    case DType::kBF16:
      layout.steps = (cols + 1) / 2;
      layout.step_bytes = kStepBytes;
      break;
    case DType::kQ8_0:
      layout.steps = BlocksOf(cols);
      layout.step_bytes = sizeof(TileBlockQ8);
      break;
    case DType::kQ4_1:
      layout.steps = BlocksOf(cols);
      layout.step_bytes = sizeof(TileBlockQ4);
      break;
    default:
      LOG(FATAL) << "the CPU computes with weights of f32, bf16, q8_0 or q4_1, not " << Name(dtype);
  }
  layout.tile_bytes = layout.steps * layout.step_bytes;
  return layout;
}

size_t PackedBytes(DType dtype, int64_t rows, int64_t cols) {
  const WeightLayout layout = LayoutOf(dtype, rows, cols);
  return static_cast<size_t>(layout.tiles * layout.tile_bytes);
}

void PackRows(const Weight& to, int64_t first, int64_t count, const float* source) {
  if (to.dtype == DType::kF32) {
    PackTiles<float>(to, first, count, source);
  } else {
    CHECK(to.dtype == DType::kBF16) << Name(to.dtype);
    PackTiles<uint16_t>(to, first, count, source);
  }
}

void PackBlocks(const Weight& to, int64_t first, int64_t count, const std::byte* source) {
  if (to.dtype == DType::kQ8_0) {
    PutRows<TileBlockQ8, BlockQ8>(to, first, count, source);
  } else {
    CHECK(to.dtype == DType::kQ4_1) << Name(to.dtype);
    PutRows<TileBlockQ4, BlockQ4>(to, first, count, source);
  }
}

void UnpackRow(const Weight& from, int64_t row, float scale, float* out) {
  const WeightLayout layout = LayoutOf(from.dtype, from.rows, from.cols);
  const std::byte* tile =
      static_cast<const std::byte*>(from.data) + row / kTileRows * layout.tile_bytes;
  const int64_t lane = row % kTileRows;
  if (from.dtype == DType::kQ8_0) {
    return UnpackQ8(reinterpret_cast<const TileBlockQ8*>(tile), lane, from.cols, scale, out);
  }
  if (from.dtype == DType::kQ4_1) {
    return UnpackQ4(reinterpret_cast<const TileBlockQ4*>(tile), lane, from.cols, scale, out);
  }
  if (from.dtype == DType::kF32) {
    const float* p = reinterpret_cast<const float*>(tile) + lane;
    for (int64_t k = 0; k < from.cols; ++k) out[k] = p[k * kTileRows] * scale;
    return;
  }
  const uint16_t* p = reinterpret_cast<const uint16_t*>(tile) + 2 * lane;
  for (int64_t k = 0; k < from.cols; ++k) {
    out[k] = FromBF16(p[k / 2 * 2 * kTileRows + k % 2]) * scale;
  }
}

}  // namespace keyline::cpu
