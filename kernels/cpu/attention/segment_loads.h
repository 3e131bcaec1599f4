// Loads of stored K and V: 16 floats out of a tile of K or a row of V, in any format, over any kind
// of 16 lanes. Included only by segment_kernels.h. Layouts: kernels/cpu/cache/kv_layout.h.
#pragma once

#include "kernels/cpu/attention/attention_kernels.h"
#include "kernels/cpu/isa/kernel_set.h"

namespace keyline {
namespace {

template <class L>
struct F32Part {
  static constexpr int kBytes = 4;
  static typename L::V Load(const std::byte* p) {
    return L::Load(reinterpret_cast<const float*>(p));
  }
};
template <class L>
struct BF16Part {
  static constexpr int kBytes = 2;
  static typename L::V Load(const std::byte* p) {
    return L::LoadBF16(reinterpret_cast<const uint16_t*>(p));
  }
};
template <class L>
struct F16Part {
  static constexpr int kBytes = 2;
  static typename L::V Load(const std::byte* p) {
    return L::LoadF16(reinterpret_cast<const uint16_t*>(p));
  }
};

// A tile of K. Enter(d) prepares for elements from d on and says for how many of them; Load(d)
// gives one of these elements of 16 slots.
template <class L, class Part>
struct PlainTile {
  const std::byte* tile;
  void Open(const SegmentMemory& m, int64_t t) { tile = m.k + t * m.k_tile_bytes; }
  int Enter(int, int head_dim) { return head_dim; }
  typename L::V Load(int d) const { return Part::Load(tile + d * (Part::kBytes * kLanes)); }
};

template <class L>
struct Int8Tile {
  const std::byte* tile;
  typename L::V scale, zero;
  void Open(const SegmentMemory& m, int64_t t) {
    tile = m.k + t * m.k_tile_bytes;
    const auto* scales = reinterpret_cast<const float*>(tile + m.k_scales);
    scale = L::Load(scales);
    zero = L::Load(scales + kLanes);
  }
  int Enter(int, int head_dim) { return head_dim; }
  typename L::V Load(int d) const {
    const auto* codes = reinterpret_cast<const uint8_t*>(tile + d * kLanes);
    return L::Mul(L::Sub(L::LoadBytes(codes), zero), scale);
  }
};

template <class L>
struct Int4Tile {
  const std::byte* tile;
  const float* scales;
  const std::byte* codes;  // where element 0 would be, counted back from the half block entered
  int shift;
  typename L::V scale, zero;
  void Open(const SegmentMemory& m, int64_t t) {
    tile = m.k + t * m.k_tile_bytes;
    scales = reinterpret_cast<const float*>(tile + m.k_scales);
  }
  int Enter(int d, int head_dim) {
    const int block = d / 32;
    const int half = head_dim - block * 32 < 32 ? (head_dim - block * 32) / 2 : 16;
    const bool high = d - block * 32 < half;
    shift = high ? 4 : 0;
    codes = tile + (block * 16 - block * 32 - (high ? 0 : half)) * kLanes;
    scale = L::Load(scales + 2 * block * kLanes);
    zero = L::Load(scales + (2 * block + 1) * kLanes);
    return half;
  }
  typename L::V Load(int d) const {
    const auto* bytes = reinterpret_cast<const uint8_t*>(codes + d * kLanes);
    return L::Mul(L::Sub(L::LoadNibbles(bytes, shift), zero), scale);
  }
};

// A row of V. Load(i) gives elements [16 i, 16 i + 16) of a slot.
template <class L, class Part>
struct PlainRow {
  const std::byte* row;
  PlainRow(const SegmentMemory& m, int64_t slot) : row(m.v + slot * m.v_row_bytes) {}
  typename L::V Load(int i) const { return Part::Load(row + i * (Part::kBytes * kLanes)); }
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
    // A last block of 16 has its high and low nibbles in 8 bytes.
    const typename L::V q = head_dim - block * 32 < 32 ? L::LoadNibblePairs(codes)
                                                       : L::LoadNibbles(codes, i % 2 == 0 ? 4 : 0);
    return L::Mul(L::Sub(q, L::Set(scales[2 * block + 1])), L::Set(scales[2 * block]));
  }
};

// Calls f.template operator()<Tile>() for the format of K; the same for V's rows.
template <class L, class F>
void WithTile(KvFormat format, const F& f) {
  switch (format) {
    case KvFormat::kF32:
      return f.template operator()<PlainTile<L, F32Part<L>>>();
    case KvFormat::kBF16:
      return f.template operator()<PlainTile<L, BF16Part<L>>>();
    case KvFormat::kF16:
      return f.template operator()<PlainTile<L, F16Part<L>>>();
    case KvFormat::kInt8:
      return f.template operator()<Int8Tile<L>>();
    case KvFormat::kInt4:
      return f.template operator()<Int4Tile<L>>();
  }
}
template <class L, class F>
void WithRow(KvFormat format, const F& f) {
  switch (format) {
    case KvFormat::kF32:
      return f.template operator()<PlainRow<L, F32Part<L>>>();
    case KvFormat::kBF16:
      return f.template operator()<PlainRow<L, BF16Part<L>>>();
    case KvFormat::kF16:
      return f.template operator()<PlainRow<L, F16Part<L>>>();
    case KvFormat::kInt8:
      return f.template operator()<Int8Row<L>>();
    case KvFormat::kInt4:
      return f.template operator()<Int4Row<L>>();
  }
}

}  // namespace
}  // namespace keyline
