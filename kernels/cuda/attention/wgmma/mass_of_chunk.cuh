// Attention mass of a chunk: for each slot the sum of its weights over all query rows, from their
// log-sum-exps, by a second pass with K standing still. The products are those of AttendChunk, bit
// by bit, so that the weights of a row sum to one.
//
// A block has 256 slots. Its first warpgroup copies tiles of 64 query rows; the two others multiply
// them by 128 slots each, the products of the next tile under way while the weights of one are
// summed: a thread has the columns of its slots in registers, so nothing crosses threads before the
// end. Sums have a fixed order.
#pragma once

#include "kernels/cuda/attention/wgmma/tiles.cuh"
#include "kernels/cuda/device_check.cuh"

namespace keyline::cuda::wgmma {

constexpr int kMassSlots = 128;  // of a warpgroup
constexpr int kMassBlockSlots = kMultipliers * kMassSlots;
constexpr int kMassRows = 64;

// Named barriers.
constexpr int kMassSums = 1;  // and the next: of each multiplying warpgroup
constexpr int kMassTurn = 3;  // and the next

struct QueryRow {
  float lse;
  int position;
};

template <class T, int kDim>
struct MassShared {
  static constexpr int kStages = kDim <= 128 ? 4 : 2;
  using Queries = Tile<T, kDim, kMassRows>;
  using Slots = Tile<T, kDim, kMassBlockSlots>;

  alignas(kAtomBytes) unsigned char k[Slots::kBytes];
  alignas(kAtomBytes) unsigned char q[kStages][Queries::kBytes];
  alignas(16) QueryRow rows[kStages][kMassRows];
  alignas(16) int32_t positions[kMassBlockSlots];
  float sums[kMultiplierWarps][kMassSlots];
  Barrier k_full, full[kStages], free[kStages];
};

// Tiles of query rows: those that see something of some slots, [begin, end), and among them those
// whose rows all see all of the slots, [all_begin, all_end).
struct RowTiles {
  int begin = 0, end = 0, all_begin = 0, all_end = 0;
};

__device__ inline RowTiles RowTilesOf(const AttentionArguments& a, const AttentionTask& t,
                                      const TilePositions& p) {
  const int64_t rows = int64_t{t.chunk.tokens} * a.group;
  // The first row at a position or behind it.
  const auto row_at = [&](int64_t position) {
    const int64_t row = (position - t.chunk.first_position) * a.group;
    return row < 0 ? 0 : row < rows ? row : rows;
  };
  const auto tile_from = [](int64_t row) {
    return static_cast<int>((row + kMassRows - 1) / kMassRows);
  };
  RowTiles out;
  if (p.newest < 0) return out;
  out.begin = static_cast<int>(row_at(p.oldest) / kMassRows);
  out.end = tile_from(a.window > 0 ? row_at(int64_t{p.newest} + a.window) : rows);
  out.all_begin = p.full ? tile_from(row_at(p.newest)) : out.end;
  // A last tile without all of its rows will do: the missing ones have no weight.
  const int64_t last = a.window > 0 ? row_at(int64_t{p.oldest} + a.window) : rows;
  out.all_end = last == rows ? out.end : static_cast<int>(last / kMassRows);
  return out;
}

// The tiles of a block: of either half of its slots.
struct BlockTiles {
  TilePositions positions[kMultipliers];
  RowTiles rows[kMultipliers];
  int begin = INT_MAX, end = 0;

  __device__ BlockTiles(const AttentionArguments& a, const AttentionTask& t, int first_slot) {
#pragma unroll
    for (int i = 0; i < kMultipliers; ++i) {
      const int first = first_slot + i * kMassSlots;
      positions[i] =
          Understand(t, LoadPositions(t, a.kv.slots, first, kMassSlots), first, kMassSlots);
      rows[i] = RowTilesOf(a, t, positions[i]);
      if (rows[i].begin >= rows[i].end) continue;
      begin = min(begin, rows[i].begin);
      end = max(end, rows[i].end);
    }
  }
};

template <class T, int kDim>
__device__ void FillRowTiles(MassShared<T, kDim>& shared, const AttentionArguments& a,
                             const StagedTask& t, const BlockTiles& tiles, int first_slot) {
  using Shared = MassShared<T, kDim>;
  constexpr int kStages = Shared::kStages;
  const int thread = threadIdx.x;
  if (thread < kWarp) {
#pragma unroll
    for (int i = 0; i < kMultipliers; ++i) {
      *reinterpret_cast<int4*>(shared.positions + i * kMassSlots + thread * 4) =
          tiles.positions[i].mine;
    }
    shared.k_full.Arrive();
  }
  FillSlots(typename Shared::Slots(shared.k), t.k, t.quantized_k, a.kv.k_format, first_slot, t.used,
            shared.k_full);
  const int rows = t.chunk.tokens * a.group;
  const auto load_row = [&](int tile) {
    const int row = tile * kMassRows + thread % kMassRows;
    const int token = row / a.group;
    QueryRow out = {INFINITY, t.chunk.first_position + token};
    if (row < rows) {
      out.lse = a.lse[size_t(t.chunk.first_token + token) * a.heads + t.kv_head * a.group + row -
                      token * a.group];
    }
    return out;
  };
  QueryRow next = {};
  if (tiles.begin < tiles.end) next = load_row(tiles.begin);
  for (int i = tiles.begin; i < tiles.end; ++i) {
    const int n = i - tiles.begin;
    const QueryRow mine = next;
    next = load_row(i + 1);
    if (n >= kStages) shared.free[n % kStages].Wait(n / kStages - 1);
    if (thread < kMassRows) {
      shared.rows[n % kStages][thread] = mine;
      shared.full[n % kStages].Arrive();
    }
    constexpr int kWarpRows = kMassRows / (kWarpgroup / kWarp);
    const int warp_row = thread / kWarp * kWarpRows;
    FillQueries<kWarpRows>(typename Shared::Queries(shared.q[n % kStages]), warp_row, a, t,
                           i * kMassRows + warp_row);
    shared.full[n % kStages].ArriveAfterCopies();
  }
}

// Adds the weights of this thread's two rows.
__device__ inline void AddWeights(float (&mass)[kMassSlots / 4], float (&s)[kMassSlots / 2],
                                  const QueryRow (&rows)[2], const AttentionArguments& a,
                                  const int32_t* positions, bool seen_by_all) {
  Softcap(s, a);
  const float factor = FactorOf(a);
  const float lse[2] = {rows[0].lse, rows[1].lse};
  if (seen_by_all) {
#pragma unroll
    for (int n = 0; n < kMassSlots / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        mass[2 * n + j % 2] += Exp2(fmaf(s[4 * n + j], factor, -lse[j / 2]));
      }
    }
    return;
  }
  const unsigned reach = ReachOf(a);
#pragma unroll
  for (int n = 0; n < kMassSlots / 8; ++n) {
    const int2 p = *reinterpret_cast<const int2*>(positions + n * 8);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned back = rows[j / 2].position - (j % 2 == 0 ? p.x : p.y);
      const float weight = Exp2(fmaf(s[4 * n + j], factor, -lse[j / 2]));
      mass[2 * n + j % 2] += back < reach ? weight : 0.0f;
    }
  }
}

// Grid: (blocks of slots, pairs of chunk and KV head).
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    MassOfChunk([[maybe_unused]] AttentionArguments a, [[maybe_unused]] int first_pair) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(kAtomBytes) unsigned char memory[];
  using Shared = MassShared<T, kDim>;
  constexpr int kStages = Shared::kStages;
  Shared& shared = *reinterpret_cast<Shared*>(memory);

  const StagedTask t = ReadTaskOf(a, first_pair);
  const int first_slot = blockIdx.x * kMassBlockSlots;
  if (!t.mass || t.chunk.tokens == 1 || first_slot >= t.used) return;
  if (threadIdx.x == 0) {
    DeviceCheck(SharedAddress(memory) % kAtomBytes == 0);
    shared.k_full.Init(kWarpgroup + kWarp);
    for (int i = 0; i < kStages; ++i) {
      shared.full[i].Init(kWarpgroup + kMassRows);
      shared.free[i].Init(kMultipliers * kWarpgroup);
    }
  }
  __syncthreads();
  const BlockTiles tiles(a, t, first_slot);

  if (threadIdx.x < kWarpgroup) {
    GiveRegisters<kFillRegisters>();
    FillRowTiles(shared, a, t, tiles, first_slot);
    return;
  }
  TakeRegisters<kMultiplyRegisters>();
  const int group = threadIdx.x / kWarpgroup - 1;
  const int warp = threadIdx.x % kWarpgroup / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int32_t* const column = shared.positions + group * kMassSlots + lane % 4 * 2;
  const RowTiles mine = group == 0 ? tiles.rows[0] : tiles.rows[1];
  float mass[kMassSlots / 4] = {};
  float even[kMassSlots / 2], odd[kMassSlots / 2];  // products of tiles 2n and 2n + 1
  const int count = tiles.end - tiles.begin;

  // By turns with the other group: a warp that begins products does little else until nearly the
  // last of them has begun, and has all of what multiplies for so long.
  const auto multiply = [&](float(&s)[kMassSlots / 2], int n) {
    shared.full[n % kStages].Wait(n / kStages);
    SyncThreads(kMassTurn + group, kMultipliers * kWarpgroup);
    PublishToProducts();
    Pin(s);
    BeginProducts();
    MultiplyQK(s, typename Shared::Queries(shared.q[n % kStages]), 0,
               typename Shared::Slots(shared.k), group * kMassSlots);
    CommitProducts();
    CountThreads(kMassTurn + 1 - group, kMultipliers * kWarpgroup);
  };
  // Of tile n, whose products are there.
  const auto add = [&](float(&s)[kMassSlots / 2], int n) {
    Pin(s);
    const QueryRow* const first = shared.rows[n % kStages] + warp * 16 + lane / 4;
    const QueryRow rows[2] = {first[0], first[8]};
    shared.free[n % kStages].Arrive();
    const int i = tiles.begin + n;
    AddWeights(mass, s, rows, a, column, i >= mine.all_begin && i < mine.all_end);
  };
  shared.k_full.Wait(0);
  if (group == 1) CountThreads(kMassTurn, kMultipliers * kWarpgroup);
  if (count > 0) {
    multiply(even, 0);
    int n = 0;
    for (; n + 2 < count; n += 2) {
      multiply(odd, n + 1);
      WaitForProducts<1>();
      add(even, n);
      multiply(even, n + 2);
      WaitForProducts<1>();
      add(odd, n + 1);
    }
    if (n + 1 < count) {
      multiply(odd, n + 1);
      WaitForProducts<1>();
      add(even, n);
      WaitForProducts<0>();
      add(odd, n + 1);
    } else {
      WaitForProducts<0>();
      add(even, n);
    }
  }
  if (group == 0) SyncThreads(kMassTurn, kMultipliers * kWarpgroup);

  // Over the eight lanes with the same columns, then over the warps.
  float(*const sums)[kMassSlots] = shared.sums + group * (kWarpgroup / kWarp);
#pragma unroll
  for (int n = 0; n < kMassSlots / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        mass[2 * n + j] += __shfl_xor_sync(kAllLanes, mass[2 * n + j], offset);
      }
      if (lane < 4) sums[warp][n * 8 + lane * 2 + j] = mass[2 * n + j];
    }
  }
  SyncThreads(kMassSums + group, kWarpgroup);
  static_assert(kMassSlots == kWarpgroup);
  const int index = threadIdx.x % kWarpgroup;
  const int number = first_slot + group * kMassSlots + index;
  if (number >= t.used) return;
  float sum = 0;
  for (int w = 0; w < kWarpgroup / kWarp; ++w) sum += sums[w][index];
  const int slot = t.order == nullptr ? number : t.order[number];
  a.mass[(size_t(t.index) * a.kv.kv_heads + t.kv_head) * a.kv.slots + slot] =
      sum / static_cast<float>(a.group);
#endif
}

}  // namespace keyline::cuda::wgmma
