// Attention mass of a chunk: for each slot the sum of its weights over all query rows, from their
// log-sum-exps, by a second pass with K standing still. The products are those of AttendChunk, bit
// by bit, so that the weights of a row sum to one.
//
// A block has 128 slots. Its first warpgroup copies tiles of 128 query rows; the two others
// multiply 64 rows each, the products of the next tile under way while the weights of one are
// summed: a thread has the columns of its slots in registers, so nothing crosses threads before the
// end. Sums have a fixed order.
#pragma once

#include "kernels/cuda/attention/wgmma/tiles.cuh"
#include "kernels/cuda/device_check.cuh"

namespace keyline::cuda::wgmma {

constexpr int kMassSlots = 128;

struct QueryRow {
  float lse;
  int position;
};

template <class T, int kDim>
struct MassShared {
  static constexpr int kStages = kDim <= 128 ? 3 : 2;
  using Queries = Tile<T, kDim, kRows>;
  using Slots = Tile<T, kDim, kMassSlots>;

  alignas(kAtomBytes) unsigned char k[Slots::kBytes];
  alignas(kAtomBytes) unsigned char q[kStages][Queries::kBytes];
  alignas(16) QueryRow rows[kStages][kRows];
  alignas(16) int32_t positions[kMassSlots];
  float sums[kMultiplierWarps][kMassSlots];
  Barrier k_full, full[kStages], free[kStages];
};

// Tiles of query rows: those that see something of the slots, [begin, end), and among them those
// whose rows all see all of the slots, [all_begin, all_end).
struct RowTiles {
  int begin, end, all_begin, all_end;
};

__device__ inline RowTiles RowTilesOf(const AttentionArguments& a, const AttentionTask& t,
                                      const TilePositions& p) {
  const int64_t rows = int64_t{t.chunk.tokens} * a.group;
  // The first row at a position or behind it.
  const auto row_at = [&](int64_t position) {
    const int64_t row = (position - t.chunk.first_position) * a.group;
    return row < 0 ? 0 : row < rows ? row : rows;
  };
  const auto tile_from = [](int64_t row) { return static_cast<int>((row + kRows - 1) / kRows); };
  RowTiles out;
  out.begin = static_cast<int>(row_at(p.oldest) / kRows);
  out.end = tile_from(a.window > 0 ? row_at(int64_t{p.newest} + a.window) : rows);
  if (p.newest < 0) out.end = out.begin;
  out.all_begin = p.full ? tile_from(row_at(p.newest)) : out.end;
  // A last tile without all of its rows will do: the missing ones have no weight.
  const int64_t last = a.window > 0 ? row_at(int64_t{p.oldest} + a.window) : rows;
  out.all_end = last == rows ? out.end : static_cast<int>(last / kRows);
  return out;
}

template <class T, int kDim>
__device__ void FillRowTiles(MassShared<T, kDim>& shared, const AttentionArguments& a,
                             const AttentionTask& t, const TilePositions& positions,
                             const RowTiles& tiles, int first_slot) {
  using Shared = MassShared<T, kDim>;
  constexpr int kStages = Shared::kStages;
  const int thread = threadIdx.x;
  if (thread < kWarp) {
    *reinterpret_cast<int4*>(shared.positions + thread * 4) = positions.mine;
    shared.k_full.Arrive();
  }
  FillSlots(typename Shared::Slots(shared.k),
            HeadOf(a.kv.k, a.kv.k_format, a.kv, t.chunk.lane, t.kv_head).codes, first_slot, t.used);
  shared.k_full.ArriveAfterCopies();
  const int rows = t.chunk.tokens * a.group;
  for (int i = tiles.begin; i < tiles.end; ++i) {
    const int n = i - tiles.begin;
    const int row = i * kRows + thread;
    const int token = row / a.group;
    QueryRow mine = {INFINITY, t.chunk.first_position + token};
    if (row < rows) {
      mine.lse = a.lse[size_t(t.chunk.first_token + token) * a.heads + t.kv_head * a.group + row -
                       token * a.group];
    }
    if (n >= kStages) shared.free[n % kStages].Wait(n / kStages - 1);
    shared.rows[n % kStages][thread] = mine;
    shared.full[n % kStages].Arrive();
    const int warp_row = thread / kWarp * kWarp;
    FillQueries<kWarp>(typename Shared::Queries(shared.q[n % kStages]), warp_row, a, t,
                       i * kRows + warp_row);
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

// Grid: (slot tiles, kv_heads, chunks).
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) MassOfChunk([[maybe_unused]] AttentionArguments a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(kAtomBytes) unsigned char memory[];
  using Shared = MassShared<T, kDim>;
  constexpr int kStages = Shared::kStages;
  Shared& shared = *reinterpret_cast<Shared*>(memory);

  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  const int first_slot = blockIdx.x * kMassSlots;
  if (!t.mass || t.chunk.tokens == 1 || first_slot >= t.used) return;
  if (threadIdx.x == 0) {
    DeviceCheck(SharedAddress(memory) % kAtomBytes == 0);
    shared.k_full.Init(kWarpgroup + kWarp);
    for (int i = 0; i < kStages; ++i) {
      shared.full[i].Init(2 * kWarpgroup);
      shared.free[i].Init(kMultiplierWarps);
    }
  }
  __syncthreads();
  const TilePositions positions =
      Understand(t, LoadPositions(t, a.kv.slots, first_slot, kMassSlots), first_slot, kMassSlots);
  const RowTiles tiles = RowTilesOf(a, t, positions);

  if (threadIdx.x < kWarpgroup) {
    GiveRegisters<kFillRegisters>();
    FillRowTiles(shared, a, t, positions, tiles, first_slot);
    return;
  }
  TakeRegisters<kMultiplyRegisters>();
  const int group = threadIdx.x / kWarpgroup - 1;
  const int warp = (threadIdx.x - kWarpgroup) / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int32_t* const column = shared.positions + lane % 4 * 2;
  float mass[kMassSlots / 4] = {};
  float even[kMassSlots / 2], odd[kMassSlots / 2];  // products of tiles 2n and 2n + 1
  const int count = tiles.end - tiles.begin;

  const auto multiply = [&](float(&s)[kMassSlots / 2], int n) {
    shared.full[n % kStages].Wait(n / kStages);
    PublishToProducts();
    Pin(s);
    BeginProducts();
    MultiplyQK(s, typename Shared::Queries(shared.q[n % kStages]), group * 64,
               typename Shared::Slots(shared.k));
    CommitProducts();
  };
  // Of tile n, whose products are there.
  const auto add = [&](float(&s)[kMassSlots / 2], int n) {
    Pin(s);
    const QueryRow* const mine = shared.rows[n % kStages] + warp * 16 + lane / 4;
    const QueryRow rows[2] = {mine[0], mine[8]};
    __syncwarp();
    if (lane == 0) shared.free[n % kStages].Arrive();
    const int i = tiles.begin + n;
    AddWeights(mass, s, rows, a, column, i >= tiles.all_begin && i < tiles.all_end);
  };
  shared.k_full.Wait(0);
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

  // Over the eight lanes with the same columns, then over the warps.
#pragma unroll
  for (int n = 0; n < kMassSlots / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        mass[2 * n + j] += __shfl_xor_sync(kAllLanes, mass[2 * n + j], offset);
      }
      if (lane < 4) shared.sums[warp][n * 8 + lane * 2 + j] = mass[2 * n + j];
    }
  }
  SyncThreads(1, kMultipliers * kWarpgroup);
  const int column_index = threadIdx.x - kWarpgroup;
  const int slot = first_slot + column_index;
  if (column_index >= kMassSlots || slot >= t.used) return;
  float sum = 0;
  for (int w = 0; w < kMultiplierWarps; ++w) sum += shared.sums[w][column_index];
  a.mass[(size_t(blockIdx.z) * a.kv.kv_heads + t.kv_head) * a.kv.slots + slot] =
      sum / static_cast<float>(a.group);
#endif
}

}  // namespace keyline::cuda::wgmma
