// Tiles of queries, K and V in the layout of instructions.cuh, and what the slots of a tile mean
// for a row of queries.
#pragma once

#include <climits>
#include <numeric>

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/kv_values.cuh"
#include "kernels/cuda/attention/wgmma/instructions.cuh"
#include "kernels/cuda/attention/wgmma/staged_slots.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda::wgmma {

// Blocks have one warpgroup that fills tiles and two that multiply, 64 query rows each.
constexpr int kMultipliers = 2;
constexpr int kThreads = (1 + kMultipliers) * kWarpgroup;
constexpr int kMultiplierWarps = kMultipliers * kWarpgroup / kWarp;
constexpr int kRows = 64 * kMultipliers;
// Of a thread; together they are what a multiprocessor has.
constexpr int kFillRegisters = 72;
constexpr int kMultiplyRegisters = 216;

template <class T, int kDim, int kTileRows>
struct Tile {
  static constexpr int kPanels = (kDim + kPanelElements - 1) / kPanelElements;
  static constexpr uint32_t kPanelBytes = kTileRows * kPanelRowBytes;
  static constexpr uint32_t kBytes = kPanels * kPanelBytes;
  static constexpr int kPacks = kDim * sizeof(T) / 16;  // of 16 bytes, of a row
  uint32_t address;                                     // in shared memory

  explicit __device__ Tile(const unsigned char* data) : address(SharedAddress(data)) {}

  __device__ uint32_t place(int row, int pack) const {
    return address + pack / 8 * kPanelBytes + row * kPanelRowBytes + (pack % 8 ^ row % 8) * 16;
  }
  // The tile from row `row`, a multiple of 8, on.
  __device__ uint64_t matrix(int row) const {
    return MatrixAt(address + row * kPanelRowBytes, kPanelBytes);
  }
  // Added to matrix() it begins at dimension 16 * step, for rows along the sum.
  static constexpr uint64_t Along(int step) {
    return (step / 4 * kPanelBytes + step % 4 * 32) / 16;
  }
};

// Where a thread puts the packs first, first + kThreads, ... of a tile's rows from `row`, a
// multiple of 8, on. After 8 rows the swizzle begins anew: a few addresses serve for all.
template <int kThreads, class AnyTile>
class Places {
 public:
  __device__ Places(const AnyTile& tile, int row, int first)
      : tile_(tile), row_(row), first_(first) {
#pragma unroll
    for (int k = 0; k < kPeriod; ++k) {
      begin_[k] = tile.place(row + first / kPacks + k * kStep, first % kPacks);
    }
  }
  __device__ uint32_t operator[](int k) const {
    if constexpr (kRegular) {
      return begin_[k % kPeriod] + k / kPeriod * kPeriod * kStep * kPanelRowBytes;
    }
    const int i = first_ + k * kThreads;
    return tile_.place(row_ + i / kPacks, i % kPacks);
  }

 private:
  static constexpr int kPacks = AnyTile::kPacks;
  static constexpr bool kRegular = kThreads % kPacks == 0;
  static constexpr int kStep = kThreads / kPacks;  // rows
  static constexpr int kPeriod = kRegular ? 8 / std::gcd(8, kStep) : 1;
  AnyTile tile_;
  int row_, first_;
  uint32_t begin_[kPeriod];
};

// The same slots as FillSlots, in T's own format, which begin at `codes`. Enqueues copies.
template <class T, int kDim, int kTileRows>
__device__ void CopyTile(const Tile<T, kDim, kTileRows>& tile, const std::byte* codes, int first,
                         int used) {
  constexpr int kPacks = Tile<T, kDim, kTileRows>::kPacks;
  constexpr int kCopies = kTileRows * kPacks / kWarpgroup;
  static_assert(kTileRows * kPacks % kWarpgroup == 0);
  const int thread = threadIdx.x % kWarpgroup;
  const Places<kWarpgroup, Tile<T, kDim, kTileRows>> places(tile, 0, thread);
  // Rows lie one behind the other.
  const std::byte* const from = codes + (size_t(first) * kPacks + thread) * 16;
  if (first + kTileRows <= used) {
#pragma unroll
    for (int k = 0; k < kCopies; ++k) CopyAsync16(places[k], from + k * kWarpgroup * 16);
    return;
  }
#pragma unroll 2
  for (int k = 0; k < kCopies; ++k) {
    const int i = thread + k * kWarpgroup;
    const bool zeros = first + i / kPacks >= used;
    CopyAsync16(tile.place(i / kPacks, i % kPacks), zeros ? codes : from + k * kWarpgroup * 16,
                zeros);
  }
}

// The same slots as FillSlots, in a format that is to be turned into T.
template <class T, int kDim, int kTileRows>
__device__ void FillDequantized(const Tile<T, kDim, kTileRows>& tile, const KvHead& head,
                                KvFormat format, int first, int used) {
  constexpr int kPacks = Tile<T, kDim, kTileRows>::kPacks;
  constexpr int kTurns = kTileRows * kPacks / kWarpgroup;
  constexpr int kAhead = kTurns % 4 == 0 ? 4 : 5;  // loads under way
  static_assert(kTurns % kAhead == 0);
  const int thread = threadIdx.x % kWarpgroup;
#pragma unroll 1
  for (int k = 0; k < kTurns; k += kAhead) {
    StoredPack loaded[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = thread + (k + j) * kWarpgroup;
      loaded[j] = StoredPack::Load<kDim>(head, format, min(first + i / kPacks, used - 1),
                                         i % kPacks * Pack<T>::kSize);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = thread + (k + j) * kWarpgroup;
      const Pack<T> values = loaded[j].template Values<T>();
      auto pack = *reinterpret_cast<const uint4*>(&values);
      if (first + i / kPacks >= used) pack = make_uint4(0, 0, 0, 0);
      StoreShared16(tile.place(i / kPacks, i % kPacks), pack);
    }
  }
}

// Slots [first, first + kTileRows) of K or V; zeros from `used` > 0 on, where what an earlier
// sequence left could be anything. quantized: they are, in that format. By all threads of a
// warpgroup, each of which arrives at `full` once when its part is there.
template <class T, int kDim, int kTileRows>
__device__ void FillSlots(const Tile<T, kDim, kTileRows>& tile, const KvHead& head, bool quantized,
                          KvFormat format, int first, int used, Barrier& full) {
  if (quantized) {
    FillDequantized(tile, head, format, first, used);
    full.Arrive();
    return;
  }
  CopyTile(tile, head.codes, first, used);
  full.ArriveAfterCopies();
}

// kCount query rows from `first` on into the tile's rows from `at` on, a row being (token, query
// head of the group); zeros behind the last. By all threads of a warp. Enqueues copies.
template <int kCount, class T, int kDim, int kTileRows>
__device__ void FillQueries(const Tile<T, kDim, kTileRows>& tile, int at,
                            const AttentionArguments& a, const AttentionTask& t, int first) {
  constexpr int kPacks = Tile<T, kDim, kTileRows>::kPacks;
  constexpr int kCopies = kCount * kPacks / kWarp;
  static_assert(kCount <= kWarp && kCount * kPacks % kWarp == 0);
  const int lane = threadIdx.x % kWarp;
  const int row = first + lane;
  const int token = row / a.group;
  // Of row `lane`, in packs: strides and heads are multiples of one.
  const uint32_t begin = (t.chunk.first_token + token) * static_cast<uint32_t>(a.qkv_stride / 8) +
                         (t.kv_head * a.group + row - token * a.group) * kPacks;
  const auto* const from = static_cast<const std::byte*>(a.qkv);
  if (first + kCount <= t.chunk.tokens * a.group) {
    const Places<kWarp, Tile<T, kDim, kTileRows>> places(tile, at, lane);
#pragma unroll
    for (int k = 0; k < kCopies; ++k) {
      const int i = lane + k * kWarp;
      const uint32_t pack = __shfl_sync(kAllLanes, begin, i / kPacks) + i % kPacks;
      CopyAsync16(places[k], from + size_t{pack} * 16);
    }
    return;
  }
#pragma unroll 2
  for (int k = 0; k < kCopies; ++k) {
    const int i = lane + k * kWarp;
    const bool zeros = first + i / kPacks >= t.chunk.tokens * a.group;
    const uint32_t pack = __shfl_sync(kAllLanes, begin, i / kPacks) + i % kPacks;
    CopyAsync16(tile.place(at + i / kPacks, i % kPacks), from + (zeros ? 0 : size_t{pack} * 16),
                zeros);
  }
}

// Where an empty slot is: behind all queries.
constexpr int kNowhere = INT_MAX;

// Of the slots of a tile: the positions of four a lane (of the first lanes, where a warp has more),
// and what is known of all of them by every lane of the warp.
struct TilePositions {
  int4 mine;
  int oldest;  // kNowhere if all are empty
  int newest;  // -1 if all are empty
  bool full;   // none is empty
};

__device__ inline int4 LoadPositions(const AttentionTask& t, int physical, int first, int slots) {
  const int slot = first + threadIdx.x % kWarp * 4;
  if (slot >= min(first + slots, physical)) return make_int4(-1, -1, -1, -1);
  return *reinterpret_cast<const int4*>(t.slot_pos + slot);
}

// loaded: of LoadPositions(t, physical, first, slots).
__device__ inline TilePositions Understand(const AttentionTask& t, int4 loaded, int first,
                                           int slots) {
  const int i = threadIdx.x % kWarp * 4;
  const auto position = [&](int p, int j) { return first + i + j < t.used && p >= 0 ? p : -1; };
  const int p[4] = {position(loaded.x, 0), position(loaded.y, 1), position(loaded.z, 2),
                    position(loaded.w, 3)};
  const auto at = [&](int j) { return p[j] < 0 ? kNowhere : p[j]; };
  TilePositions out;
  out.mine = make_int4(at(0), at(1), at(2), at(3));
  const int lowest = min(min(at(0), at(1)), min(at(2), at(3)));
  const bool some_empty = max(max(at(0), at(1)), max(at(2), at(3))) == kNowhere;
  out.oldest = __reduce_min_sync(kAllLanes, lowest);
  out.newest = __reduce_max_sync(kAllLanes, max(max(p[0], p[1]), max(p[2], p[3])));
  out.full = !__any_sync(kAllLanes, i < slots && some_empty);
  return out;
}

// How far back a query sees: it sees p if (position - p), unsigned, is less.
__device__ inline unsigned ReachOf(const AttentionArguments& a) {
  return a.window > 0 ? a.window : 1u << 31;
}

constexpr float kLog2E = 1.4426950408889634f;

// Products become logits with a softcap only, so that without one there is nothing to do: weights
// are powers of two of what is left times FactorOf.
template <int kCount>
__device__ void Softcap(float (&s)[kCount], const AttentionArguments& a) {
  if (a.softcap <= 0) return;
  // c * tanh(x) = c - 2c / (1 + e^2x), to about 2^-22 of c.
  const float twice = 2 * kLog2E * a.scale / a.softcap;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float share;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(share) : "f"(1 + Exp2(s[i] * twice)));
    s[i] = fmaf(-2 * a.softcap, share, a.softcap);
  }
}
__device__ inline float FactorOf(const AttentionArguments& a) {
  return a.softcap > 0 ? kLog2E : a.scale * kLog2E;
}

// Products of 64 query rows, from q_row of their tile on, and as many keys as s has columns, from
// k_row on: sums of 16 dimensions at a time. Both kernels call it with the same operands in the
// same order.
template <int kSums, class T, int kDim, int kQueries, int kKeys>
__device__ void MultiplyQK(float (&s)[kSums], const Tile<T, kDim, kQueries>& q, int q_row,
                           const Tile<T, kDim, kKeys>& k, int k_row) {
  const uint64_t rows = q.matrix(q_row);
  const uint64_t keys = k.matrix(k_row);
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    MultiplyAsync(T(), s, rows + q.Along(d), keys + k.Along(d), d > 0);
  }
}

}  // namespace keyline::cuda::wgmma
