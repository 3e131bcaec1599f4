#include "kernels/cuda/matmul/weight_layout.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <glog/logging.h>

#include <algorithm>
#include <cstring>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul/packed_layout.h"
#include "kernels/ops/weight_blocks.h"

namespace keyline::cuda {
namespace {

template <class T, class Convert>
void Pack(const Weight& to, int64_t first, int64_t count, const float* source, Convert convert) {
  const int64_t padded = PaddedCols(to.cols);
  for (int64_t r = 0; r < count; ++r) {
    T* row = static_cast<T*>(to.data) + (first + r) * padded;
    const float* from = source + r * to.cols;
    for (int64_t c = 0; c < to.cols; ++c) row[c] = convert(from[c]);
    std::fill(row + to.cols, row + padded, convert(0.0f));
  }
}

// One row's block as the lanes of a tile share it.
void PutBlock(TileQ8& tile, int row, int half, const BlockQ8& block) {
  tile.scales[row][half] = block.scale;
  for (int i = 0; i < kWeightBlock; ++i) {
    tile.codes[LaneOf(row, i)][half][i % 8] = static_cast<uint8_t>(block.codes[i] + 128);
  }
}

void PutBlock(TileQ4& tile, int row, int half, const BlockQ4& block) {
  tile.scales[row][half][0] = block.scale;
  tile.scales[row][half][1] = block.min;
  for (int first = 0; first < kWeightBlock; first += 8) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) {
      const int i = first + j;
      const uint32_t code = i < 16 ? block.codes[i] & 15u : block.codes[i - 16] >> 4u;
      word |= code << 4 * NibbleOf(j);
    }
    tile.codes[LaneOf(row, first)][half] = word;
  }
}

template <class Tile, class Block>
void PutRows(const Weight& to, int64_t first, int64_t count, const std::byte* source) {
  const int64_t blocks = BlocksOf(to.cols);
  const int64_t tiles = PackedTilesOf(to.cols);
  const auto put = [&](int64_t row, int64_t block, const Block& from) {
    Tile& tile = static_cast<Tile*>(to.data)[row / kPackedRows * tiles + block / kPackedHalves];
    PutBlock(tile, static_cast<int>(row % kPackedRows), static_cast<int>(block % kPackedHalves),
             from);
  };
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t b = 0; b < tiles * kPackedHalves; ++b) {
      Block block = {};  // zeros behind the last
      if (b < blocks) {
        std::memcpy(&block, source + (row * blocks + b) * sizeof(Block), sizeof(Block));
      }
      put(first + row, b, block);
    }
  }
  if (first + count != to.rows) return;
  for (int64_t row = to.rows; row % kPackedRows != 0; ++row) {  // a tile's rows behind the last
    for (int64_t b = 0; b < tiles * kPackedHalves; ++b) put(row, b, Block{});
  }
}

}  // namespace

size_t PackedBytes(DType dtype, int64_t rows, int64_t cols) {
  if (IsPacked(dtype)) {
    const int64_t tiles = (rows + kPackedRows - 1) / kPackedRows * PackedTilesOf(cols);
    return tiles * (dtype == DType::kQ8_0 ? sizeof(TileQ8) : sizeof(TileQ4));
  }
  CHECK(IsFloat(dtype)) << Name(dtype);
  return BytesOf(dtype, rows * PaddedCols(cols));
}

void PackBlocks(const Weight& to, int64_t first, int64_t count, const std::byte* source) {
  if (to.dtype == DType::kQ8_0) return PutRows<TileQ8, BlockQ8>(to, first, count, source);
  CHECK(to.dtype == DType::kQ4_1) << Name(to.dtype);
  PutRows<TileQ4, BlockQ4>(to, first, count, source);
}

void PackRows(const Weight& to, int64_t first, int64_t count, const float* source) {
  switch (to.dtype) {
    case DType::kF32:
      return Pack<float>(to, first, count, source, [](float x) { return x; });
    case DType::kF16:
      return Pack<__half>(to, first, count, source, [](float x) { return __float2half_rn(x); });
    case DType::kBF16:
      return Pack<__nv_bfloat16>(to, first, count, source,
                                 [](float x) { return __float2bfloat16_rn(x); });
    default:
      LOG(FATAL) << "no CUDA weight is " << Name(to.dtype);
  }
}

}  // namespace keyline::cuda
