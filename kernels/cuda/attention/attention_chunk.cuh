// Attention of a chunk of several tokens on tensor cores: flash attention (Dao 2023,
// https://arxiv.org/abs/2307.08691) over the slots of a cache, whose positions are in any order,
// and the mass by a second pass that recomputes the logits with K standing still.
//
// A block has 64 query rows (token, head of the group), 16 a warp, and walks over tiles of 64
// slots, the next one under way. Both passes multiply the same numbers in the same order, so the
// weights that the mass sums are those of the attention.
#pragma once

#include "kernels/cuda/attention/kv_tiles.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

constexpr int kChunkWarps = 4;
constexpr int kChunkThreads = kChunkWarps * kWarp;
static_assert(kChunkThreads == kTileThreads);
constexpr int kChunkRows = 16 * kChunkWarps;
constexpr int kTileSlots = 64;

// S [16 rows of a warp, 64 slots] = Q K^T: sums of 8 columns each.
template <class T, int kDim>
__device__ void MultiplyQK(float (&s)[kTileSlots / 8][4], const Tile<T, kDim>& q, int first_row,
                           const Tile<T, kDim>& k) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kTileSlots / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] = 0;
  }
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    uint32_t a[4];
    LoadTiles(a, q.row(first_row + lane % 16) + d + lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < kTileSlots / 8; n += 2) {
      uint32_t b[4];  // slots 8n..8n+7 and the next eight, 16 dimensions
      LoadTiles(b, k.row(8 * n + lane / 16 * 8 + lane % 8) + d + lane / 8 % 2 * 8);
      MultiplyAdd<T>(s[n], a, b[0], b[1]);
      MultiplyAdd<T>(s[n + 1], a, b[2], b[3]);
    }
  }
}

template <class T, int kDim>
struct ChunkShared {
  static constexpr size_t kQ = Tile<T, kDim>::Bytes(kChunkRows);
  static constexpr size_t kTile = Tile<T, kDim>::Bytes(kTileSlots);
  // Queries; two tiles each of K and V; two of positions.
  static constexpr size_t kBytes = kQ + 4 * kTile + 2 * kTileSlots * sizeof(int32_t);
};

// Grid: (row blocks, kv_heads, chunks), the last rows first: they see most.
template <class T, int kDim>
__global__ void __launch_bounds__(kChunkThreads) AttendChunk(const AttentionArguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  using Shared = ChunkShared<T, kDim>;
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  const int rows = t.chunk.tokens * a.group;
  const int first_row = (static_cast<int>(gridDim.x - 1 - blockIdx.x)) * kChunkRows;
  if (t.chunk.tokens == 1 || first_row >= rows) return;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;

  const Tile<T, kDim> q = {reinterpret_cast<T*>(shared)};
  const auto k_tile = [&](int i) {
    return Tile<T, kDim>{reinterpret_cast<T*>(shared + Shared::kQ + i % 2 * Shared::kTile)};
  };
  const auto v_tile = [&](int i) {
    return Tile<T, kDim>{reinterpret_cast<T*>(shared + Shared::kQ + (2 + i % 2) * Shared::kTile)};
  };
  int32_t* const pos_tiles = reinterpret_cast<int32_t*>(shared + Shared::kQ + 4 * Shared::kTile);
  const KvHead k = HeadOf(a.kv.k, a.kv.k_format, a.kv, t.chunk.lane, t.kv_head);
  const KvHead v = HeadOf(a.kv.v, a.kv.v_format, a.kv, t.chunk.lane, t.kv_head);

  // Before the first eviction slots are positions: tiles that no row sees are left out.
  const int last_row = min(first_row + kChunkRows, rows) - 1;
  const int first_position = t.chunk.first_position + first_row / a.group;
  const int last_position = t.chunk.first_position + last_row / a.group;
  const int begin = t.in_order ? (LowestSeen(a, first_position) + 1) / kTileSlots : 0;
  const int end_slot = t.in_order ? last_position + 1 : t.used;
  const int end = (end_slot + kTileSlots - 1) / kTileSlots;
  const auto fill = [&](int i) {
    const int first = i * kTileSlots;
    FillKv<kTileSlots>(k_tile(i), k, a.kv.k_format, first, t.used);
    FillKv<kTileSlots>(v_tile(i), v, a.kv.v_format, first, t.used);
    FillPositions(pos_tiles + i % 2 * kTileSlots, t, first, kTileSlots);
    CommitCopies();
  };

  FillQueries(q, a, t, first_row, kChunkRows);
  fill(begin);

  // This lane's two rows.
  int position[2], lowest[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = first_row + warp * 16 + lane / 4 + i * 8;
    position[i] = row < rows ? t.chunk.first_position + row / a.group : -1;
    lowest[i] = LowestSeen(a, position[i]);
  }
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0, 0};
  float o[kDim / 8][4] = {};

  for (int i = begin; i < end; ++i) {
    if (i + 1 < end) {
      fill(i + 1);
      WaitForCopies<1>();
    } else {
      WaitForCopies<0>();
    }
    __syncthreads();
    float s[kTileSlots / 8][4];
    MultiplyQK(s, q, warp * 16, k_tile(i));
    ToLogits(s, a);
    const int32_t* pos = pos_tiles + i % 2 * kTileSlots;
    float new_m[2] = {m[0], m[1]};
#pragma unroll
    for (int n = 0; n < kTileSlots / 8; ++n) {
      const int2 slots = *reinterpret_cast<const int2*>(pos + n * 8 + lane % 4 * 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int p = j % 2 == 0 ? slots.x : slots.y;
        const bool seen = p > lowest[j / 2] && p <= position[j / 2];
        s[n][j] = seen ? s[n][j] : -INFINITY;
        new_m[j / 2] = fmaxf(new_m[j / 2], s[n][j]);
      }
    }
    float base[2], shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      new_m[r] = fmaxf(new_m[r], __shfl_xor_sync(kAllLanes, new_m[r], 1));
      new_m[r] = fmaxf(new_m[r], __shfl_xor_sync(kAllLanes, new_m[r], 2));
      base[r] = new_m[r] == -INFINITY ? 0.0f : new_m[r];
      shrink[r] = Exp2(m[r] - base[r]);
      m[r] = new_m[r];
      l[r] *= shrink[r];
    }
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
#pragma unroll
      for (int j = 0; j < 4; ++j) o[d][j] *= shrink[j / 2];
    }
#pragma unroll
    for (int n = 0; n < kTileSlots / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[n][j] = Exp2(s[n][j] - base[j / 2]);
        l[j / 2] += s[n][j];
      }
    }
    const Tile<T, kDim> values = v_tile(i);
#pragma unroll
    for (int n = 0; n < kTileSlots / 8; n += 2) {
      const uint32_t p[4] = {PackTwo<T>(s[n][0], s[n][1]), PackTwo<T>(s[n][2], s[n][3]),
                             PackTwo<T>(s[n + 1][0], s[n + 1][1]),
                             PackTwo<T>(s[n + 1][2], s[n + 1][3])};
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        uint32_t b[4];  // 16 slots; dimensions d..d+7 and the next eight
        LoadTilesTransposed(b, values.row(8 * n + lane % 16) + d + lane / 16 * 8);
        MultiplyAdd<T>(o[d / 8], p, b[0], b[1]);
        MultiplyAdd<T>(o[d / 8 + 1], p, b[2], b[3]);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(kAllLanes, l[r], 1);
    l[r] += __shfl_xor_sync(kAllLanes, l[r], 2);
    const int row = first_row + warp * 16 + lane / 4 + r * 8;
    if (row >= rows) continue;
    const float inverse = l[r] > 0 ? 1.0f / l[r] : 0.0f;
    const size_t token = t.chunk.first_token + row / a.group;
    const int head = t.kv_head * a.group + row % a.group;
    T* const out = static_cast<T*>(a.out) + token * a.out_stride + size_t(head) * kDim;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<uint32_t*>(out + d * 8 + lane % 4 * 2) =
          PackTwo<T>(o[d][2 * r] * inverse, o[d][2 * r + 1] * inverse);
    }
    if (t.mass && lane % 4 == 0) {
      a.lse[token * a.heads + head] = l[r] > 0 ? m[r] + log2f(l[r]) : INFINITY;
    }
  }
}

template <class T, int kDim>
struct MassShared {
  static constexpr size_t kTile = Tile<T, kDim>::Bytes(kTileSlots);
  // K; two tiles of queries; sums of the warps.
  static constexpr size_t kBytes = 3 * kTile + kChunkWarps * kTileSlots * sizeof(float);
};
static_assert(kChunkRows == kTileSlots);

// Grid: (slot tiles, kv_heads, chunks).
template <class T, int kDim>
__global__ void __launch_bounds__(kChunkThreads) MassOfChunk(const AttentionArguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  using Shared = MassShared<T, kDim>;
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  const int first_slot = blockIdx.x * kTileSlots;
  if (!t.mass || t.chunk.tokens == 1 || first_slot >= t.used) return;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int rows = t.chunk.tokens * a.group;

  const Tile<T, kDim> keys = {reinterpret_cast<T*>(shared)};
  const auto q_tile = [&](int i) {
    return Tile<T, kDim>{reinterpret_cast<T*>(shared + (1 + i % 2) * Shared::kTile)};
  };
  float* const sums = reinterpret_cast<float*>(shared + 3 * Shared::kTile);
  const KvHead k = HeadOf(a.kv.k, a.kv.k_format, a.kv, t.chunk.lane, t.kv_head);
  FillKv<kTileSlots>(keys, k, a.kv.k_format, first_slot, t.used);
  // In order, rows before the tile's first position see nothing of it.
  const int begin =
      t.in_order ? max(0, first_slot - t.chunk.first_position) * a.group / kChunkRows : 0;
  const int end = (rows + kChunkRows - 1) / kChunkRows;
  const auto fill = [&](int i) {
    FillQueries(q_tile(i), a, t, i * kChunkRows, kChunkRows);
    CommitCopies();
  };
  if (begin < end) fill(begin);

  int pos[kTileSlots / 8][2];  // of this lane's columns
#pragma unroll
  for (int n = 0; n < kTileSlots / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int slot = first_slot + n * 8 + lane % 4 * 2 + j;
      pos[n][j] = slot < t.used ? t.slot_pos[slot] : -1;
    }
  }
  float mass[kTileSlots / 8][2] = {};
  for (int i = begin; i < end; ++i) {
    if (i + 1 < end) {
      fill(i + 1);
      WaitForCopies<1>();
    } else {
      WaitForCopies<0>();
    }
    int position[2], lowest[2];
    float lse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = i * kChunkRows + warp * 16 + lane / 4 + r * 8;
      const bool mine = row < rows;
      position[r] = mine ? t.chunk.first_position + row / a.group : -1;
      lowest[r] = LowestSeen(a, position[r]);
      lse[r] = mine ? a.lse[size_t(t.chunk.first_token + row / a.group) * a.heads +
                            t.kv_head * a.group + row % a.group]
                    : INFINITY;
    }
    __syncthreads();
    float s[kTileSlots / 8][4];
    MultiplyQK(s, q_tile(i), warp * 16, keys);
    ToLogits(s, a);
#pragma unroll
    for (int n = 0; n < kTileSlots / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int p = pos[n][j % 2];
        const bool seen = p > lowest[j / 2] && p <= position[j / 2];
        mass[n][j % 2] += seen ? Exp2(s[n][j] - lse[j / 2]) : 0.0f;
      }
    }
    __syncthreads();
  }
  // Over the eight lanes with the same columns, then over the warps.
#pragma unroll
  for (int n = 0; n < kTileSlots / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        mass[n][j] += __shfl_xor_sync(kAllLanes, mass[n][j], offset);
      }
      if (lane < 4) sums[warp * kTileSlots + n * 8 + lane * 2 + j] = mass[n][j];
    }
  }
  __syncthreads();
  const int slot = first_slot + threadIdx.x;
  if (threadIdx.x >= kTileSlots || slot >= t.used) return;
  float sum = 0;
  for (int w = 0; w < kChunkWarps; ++w) sum += sums[w * kTileSlots + threadIdx.x];
  a.mass[(size_t(blockIdx.z) * a.kv.kv_heads + t.kv_head) * a.kv.slots + slot] =
      sum / static_cast<float>(a.group);
}

}  // namespace keyline::cuda
