// How the CPU arranges K and V of one (lane, KV head).
//
//   K: tiles of 16 slots. A tile is [parts][16]: part d of a slot's vector stands beside part d of
//      its neighbours, so that the lanes of a vector are slots and each logit is one chain of
//      multiply-adds over the head dimension. A part is an element, or for int4 a byte with two;
//      behind them, for quantised formats, a scale and a zero point a block, [2 * blocks][16]
//      floats.
//   V: rows, one a slot: the elements, padded to 16, then scale and zero point of each block.
// A packed row (ops::PackLane) is a V row without padding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/cache_memory.h"

namespace keyline::cpu {

constexpr int kTileSlots = 16;

struct RowLayout {
  KvFormat format = KvFormat::kF32;
  int head_dim = 0;
  int part_bytes = 0;      // of a part: 4, 2 or 1
  int parts = 0;           // of a vector
  int floats = 0;          // scales and zero points of a vector
  size_t codes_bytes = 0;  // padded parts of a vector
  size_t row_bytes = 0;    // KvRowBytes

  RowLayout(KvFormat f, int dim)
      : format(f),
        head_dim(dim),
        part_bytes(f == KvFormat::kF32 ? 4
                   : IsQuantized(f)    ? 1
                                       : 2),
        parts(f == KvFormat::kInt4 ? dim / 2 : dim),
        floats(2 * KvBlocks(f, dim)),
        codes_bytes(KvRowBytes(f, dim) - floats * sizeof(float)),
        row_bytes(KvRowBytes(f, dim)) {}

  size_t packed_bytes() const { return size_t(parts) * part_bytes + floats * sizeof(float); }
  // Where a tile's scales begin.
  size_t tile_scales() const { return codes_bytes * kTileSlots; }
};

// float32 [head_dim] to a packed row; returns the L2 norm of what that lost.
float EncodeRow(const RowLayout& layout, const float* values, std::byte* packed);
// And back.
void DecodeRow(const RowLayout& layout, const std::byte* packed, float* values);

// K and V of one (lane, KV head) begin at k and v; slots count from there.
void PutK(const RowLayout& layout, std::byte* k, int slot, const std::byte* packed);
void GetK(const RowLayout& layout, const std::byte* k, int slot, std::byte* packed);
void PutV(const RowLayout& layout, std::byte* v, int slot, const std::byte* packed);
void GetV(const RowLayout& layout, const std::byte* v, int slot, std::byte* packed);

}  // namespace keyline::cpu
