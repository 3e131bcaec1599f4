// The kernels of AttentionKernels, over any kind of 16 lanes. Included only by attention_<isa>.cc.
//
// Besides the operations of kernels/cpu/isa/lanes_scalar.h the lanes have loads of the formats of
// K and V and a mask by position (attention_scalar.cc shows each in its simplest form), and
// kAccumulators: sums of 16 lanes that fit the registers beside what a step loads.
#pragma once

#include "kernels/cpu/attention/attention_kernels.h"
#include "kernels/cpu/isa/row_kernels.h"

namespace keyline {
namespace {

constexpr int kGroupTiles = 4;
constexpr int kGroupSlots = kGroupTiles * kLanes;  // unit in which slots are skipped
constexpr int kGroups = kSegmentSlots / kGroupSlots;
constexpr int kMaxBlockRows = 6;

// ---- Loads: 16 floats out of a tile of K or a row of V ----------------------------------------

template <class L>
struct F32Part {
  typename L::V operator()(const std::byte* p) const {
    return L::Load(reinterpret_cast<const float*>(p));
  }
};
template <class L>
struct BF16Part {
  typename L::V operator()(const std::byte* p) const {
    return L::LoadBF16(reinterpret_cast<const uint16_t*>(p));
  }
};
template <class L>
struct F16Part {
  typename L::V operator()(const std::byte* p) const {
    return L::LoadF16(reinterpret_cast<const uint16_t*>(p));
  }
};

// A tile of K: Load(d) gives element d of 16 slots.
template <class L, class Part, int kBytes>
struct PlainTile {
  const std::byte* tile;
  PlainTile(const SegmentMemory& m, int64_t t) : tile(m.k + t * m.k_tile_bytes) {}
  void EnterBlock(int) {}
  typename L::V Load(int d) const { return Part()(tile + d * (kBytes * kLanes)); }
};

template <class L>
struct Int8Tile {
  const std::byte* tile;
  typename L::V scale, zero;
  Int8Tile(const SegmentMemory& m, int64_t t) : tile(m.k + t * m.k_tile_bytes) {
    const auto* scales = reinterpret_cast<const float*>(tile + m.k_scales);
    scale = L::Load(scales);
    zero = L::Load(scales + kLanes);
  }
  void EnterBlock(int) {}
  typename L::V Load(int d) const {
    const auto* codes = reinterpret_cast<const uint8_t*>(tile + d * kLanes);
    return L::Mul(L::Sub(L::LoadBytes(codes), zero), scale);
  }
};

template <class L>
struct Int4Tile {
  const std::byte* tile;
  const float* scales;
  int head_dim;
  int begin = 0, half = 0;
  typename L::V scale, zero;
  Int4Tile(const SegmentMemory& m, int64_t t)
      : tile(m.k + t * m.k_tile_bytes),
        scales(reinterpret_cast<const float*>(tile + m.k_scales)),
        head_dim(m.head_dim) {}
  // REQUIRES: d is a multiple of 32: the first element of a block.
  void EnterBlock(int d) {
    begin = d;
    half = head_dim - d < 32 ? (head_dim - d) / 2 : 16;
    scale = L::Load(scales + d / 32 * 2 * kLanes);
    zero = L::Load(scales + d / 32 * 2 * kLanes + kLanes);
  }
  typename L::V Load(int d) const {
    const int i = d - begin;
    const bool high = i < half;
    const auto* codes = reinterpret_cast<const uint8_t*>(
        tile + (begin / 2 + (high ? i : i - half)) * kLanes);
    const typename L::V q = high ? L::LoadHighNibbles(codes) : L::LoadLowNibbles(codes);
    return L::Mul(L::Sub(q, zero), scale);
  }
};

// A row of V: Load(i) gives elements [16 i, 16 i + 16) of a slot.
template <class L, class Part, int kBytes>
struct PlainRow {
  const std::byte* row;
  PlainRow(const SegmentMemory& m, int64_t slot) : row(m.v + slot * m.v_row_bytes) {}
  typename L::V Load(int i) const { return Part()(row + i * (kBytes * kLanes)); }
};

template <class L>
struct Int8Row {
  const std::byte* row;
  typename L::V scale, zero;
  Int8Row(const SegmentMemory& m, int64_t slot) : row(m.v + slot * m.v_row_bytes) {
    const auto* scales = reinterpret_cast<const float*>(row + m.v_scales);
    scale = L::Set(scales[0]);
    zero = L::Set(scales[1]);
  }
  typename L::V Load(int i) const {
    const auto* codes = reinterpret_cast<const uint8_t*>(row + i * kLanes);
    return L::Mul(L::Sub(L::LoadBytes(codes), zero), scale);
  }
};

template <class L>
struct Int4Row {
  const std::byte* row;
  const float* scales;
  int head_dim;
  Int4Row(const SegmentMemory& m, int64_t slot)
      : row(m.v + slot * m.v_row_bytes),
        scales(reinterpret_cast<const float*>(row + m.v_scales)),
        head_dim(m.head_dim) {}
  typename L::V Load(int i) const {
    const int block = i / 2;
    const auto* codes = reinterpret_cast<const uint8_t*>(row + block * 16);
    const bool whole = head_dim - block * 32 >= 32;
    const typename L::V q = !whole         ? L::LoadNibblePairs(codes)
                            : i % 2 == 0 ? L::LoadHighNibbles(codes)
                                         : L::LoadLowNibbles(codes);
    return L::Mul(L::Sub(q, L::Set(scales[2 * block + 1])), L::Set(scales[2 * block]));
  }
};

// ---- q . k --------------------------------------------------------------------------------------

// out[r][16 t + lane] = q[r] . k of that slot, for kRows rows and kTiles tiles from `tile` on.
template <class L, class Tile, int kRows, int kTiles>
void DotBlock(const SegmentMemory& m, int64_t tile, const float* const* q, float* out,
              int64_t out_stride) {
  using V = typename L::V;
  V sum[kRows][kTiles];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTiles; ++t) sum[r][t] = L::Set(0.0f);
  }
  const auto tiles = [&]<int... t>(std::integer_sequence<int, t...>) {
    return std::array<Tile, kTiles>{Tile(m, tile + t)...};
  };
  (void)tiles;
  const float* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = q[r];
}

}  // namespace
}  // namespace keyline
