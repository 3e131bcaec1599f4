// Attention of chunks of one token on tensor cores, the slots of a lane split over blocks.
//
// The query heads of a KV head are the rows of one 16-row product (more than 16: several). A block
// streams kSplitSlots slots through shared memory, three tiles ahead; each of its warps takes 16
// slots of a tile with sums of its own, merged at the end. What a block knows of its slots (m, l,
// o) goes to scratch, and so do the logits where mass is wanted. A second kernel merges the blocks
// and turns logits into mass. Splits are fixed ranges of slots: nothing depends on the batch.
#pragma once

#include "kernels/cuda/attention/kv_tiles.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * kWarp;
static_assert(kDecodeThreads == kTileThreads);
constexpr int kDecodeRows = 16;
constexpr int kDecodeSlots = 16 * kDecodeWarps;  // of a tile

// The part of one (chunk, KV head, split): m, l [group] and o [group, head_dim] of flash attention,
// and v [group]: l with every weight times the norm of its value, where those are known.
struct DecodePart {
  float* m;
  float* l;
  float* v;
  float* o;

  __device__ DecodePart(const AttentionArguments& a, int chunk, int kv_head, int split) {
    const int splits = (a.kv.slots + kSplitSlots - 1) / kSplitSlots;
    const size_t index = (size_t(chunk) * a.kv.kv_heads + kv_head) * splits + split;
    m = a.parts + index * (size_t(a.group) * (a.kv.head_dim + 3));
    l = m + a.group;
    v = l + a.group;
    o = v + a.group;
  }
};

// Logits [group, slots] of one chunk and KV head.
__device__ inline float* DecodeLogits(const AttentionArguments& a, int chunk, int kv_head) {
  return a.logits + (size_t(chunk) * a.kv.kv_heads + kv_head) * a.group * a.kv.slots;
}

template <class T, int kDim>
struct DecodeShared {
  // Three tiles ahead where they leave room for two blocks on a multiprocessor.
  static constexpr int kStages = kDim <= 128 ? 3 : 2;
  static constexpr size_t kQ = Tile<T, kDim>::Bytes(kDecodeRows);
  static constexpr size_t kTile = Tile<T, kDim>::Bytes(kDecodeSlots);
  static constexpr size_t kTiles = 2 * kStages * kTile;
  static constexpr size_t kMerge = size_t(kDecodeWarps) * kDecodeRows * (kDim + 3) * sizeof(float);
  static constexpr size_t kPositions = kStages * kDecodeSlots * sizeof(int32_t);
  static constexpr size_t kBytes = kQ + kPositions + (kTiles > kMerge ? kTiles : kMerge);
};

// Grid: (splits, kv_heads * row tiles, chunks).
template <class T, int kDim>
__global__ void __launch_bounds__(kDecodeThreads) AttendDecode(const AttentionArguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  using Shared = DecodeShared<T, kDim>;
  constexpr int kStages = Shared::kStages;
  LetSuccessorBegin();
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y % a.kv.kv_heads);
  const int first_slot = blockIdx.x * kSplitSlots;
  WaitForPredecessor();
  if (t.chunk.tokens != 1 || first_slot >= t.used) return;
  const int first_row = blockIdx.y / a.kv.kv_heads * kDecodeRows;
  const int rows = min(kDecodeRows, a.group - first_row);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;

  const Tile<T, kDim> q = {reinterpret_cast<T*>(shared)};
  int32_t* const pos_tiles = reinterpret_cast<int32_t*>(shared + Shared::kQ);
  unsigned char* const tiles_at = shared + Shared::kQ + Shared::kPositions;
  const auto k_tile = [&](int i) {
    return Tile<T, kDim>{reinterpret_cast<T*>(tiles_at + i % kStages * Shared::kTile)};
  };
  const auto v_tile = [&](int i) {
    return Tile<T, kDim>{reinterpret_cast<T*>(tiles_at + (kStages + i % kStages) * Shared::kTile)};
  };
  const KvHead k = HeadOf(a.kv.k, a.kv.k_format, a.kv, t.chunk.lane, t.kv_head);
  const KvHead v = HeadOf(a.kv.v, a.kv.v_format, a.kv, t.chunk.lane, t.kv_head);
  const int slots = min(kSplitSlots, t.used - first_slot);
  const int tiles = (slots + kDecodeSlots - 1) / kDecodeSlots;
  const auto fill = [&](int i) {
    if (i < tiles) {
      const int first = first_slot + i * kDecodeSlots;
      FillKv<kDecodeSlots>(k_tile(i), k, a.kv.k_format, first, t.used);
      FillKv<kDecodeSlots>(v_tile(i), v, a.kv.v_format, first, t.used);
      FillPositions(pos_tiles + i % kStages * kDecodeSlots, t, first, kDecodeSlots);
    }
    CommitCopies();
  };
  FillQueries(q, a, t, first_row, kDecodeRows);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fill(i);

  const int position = t.chunk.first_position;
  const int lowest = LowestSeen(a, position);
  float* const logits =
      t.mass ? DecodeLogits(a, blockIdx.z, t.kv_head) + size_t(first_row) * a.kv.slots : nullptr;
  const float* const norms =
      t.mass && a.value_norms != nullptr ? a.value_norms + (t.slot_pos - a.slot_pos) : nullptr;
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0, 0};
  float v_sum[2] = {0, 0};
  float o[kDim / 8][4] = {};

  for (int i = 0; i < tiles; ++i) {
    fill(i + kStages - 1);
    WaitForCopies<kStages - 1>();
    __syncthreads();
    // Of this warp's slots, the lane's columns: n * 8 + lane % 4 * 2 + {0, 1}.
    const int warp_slot = first_slot + i * kDecodeSlots + warp * 16;
    float s[2][4] = {};
    const Tile<T, kDim> keys = k_tile(i);
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t x[4], b[4];
      LoadTiles(x, q.row(lane % 16) + d + lane / 16 * 8);
      LoadTiles(b, keys.row(warp * 16 + lane / 16 * 8 + lane % 8) + d + lane / 8 % 2 * 8);
      MultiplyAdd<T>(s[0], x, b[0], b[1]);
      MultiplyAdd<T>(s[1], x, b[2], b[3]);
    }
    ToLogits(s, a);
    float new_m[2] = {m[0], m[1]};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int slot = warp_slot + n * 8 + lane % 4 * 2 + j % 2;
        const int p = pos_tiles[i % kStages * kDecodeSlots + slot - first_slot - i * kDecodeSlots];
        s[n][j] = p > lowest && p <= position ? s[n][j] : -INFINITY;
        const int row = lane / 4 + j / 2 * 8;
        if (logits != nullptr && row < rows && slot < t.used) {
          logits[size_t(row) * a.kv.slots + slot] = s[n][j];
        }
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
      v_sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[n][j] = Exp2(s[n][j] - base[j / 2]);
        l[j / 2] += s[n][j];
        const int slot = warp_slot + n * 8 + lane % 4 * 2 + j % 2;
        if (norms != nullptr && slot < t.used) v_sum[j / 2] += s[n][j] * norms[slot];
      }
    }
    const uint32_t p[4] = {PackTwo<T>(s[0][0], s[0][1]), PackTwo<T>(s[0][2], s[0][3]),
                           PackTwo<T>(s[1][0], s[1][1]), PackTwo<T>(s[1][2], s[1][3])};
    const Tile<T, kDim> values = v_tile(i);
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t b[4];
      LoadTilesTransposed(b, values.row(warp * 16 + lane % 16) + d + lane / 16 * 8);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int j = 0; j < 4; ++j) o[d / 8 + h][j] *= shrink[j / 2];
        MultiplyAdd<T>(o[d / 8 + h], p, b[2 * h], b[2 * h + 1]);
      }
    }
    __syncthreads();
  }

  // The warps' sums, merged in their order.
  WaitForCopies<0>();
  float* const merge = reinterpret_cast<float*>(tiles_at);
  float* const part_m = merge + size_t(kDecodeWarps) * kDecodeRows * kDim;
  float* const part_l = part_m + kDecodeWarps * kDecodeRows;
  float* const part_v = part_l + kDecodeWarps * kDecodeRows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      l[r] += __shfl_xor_sync(kAllLanes, l[r], offset);
      v_sum[r] += __shfl_xor_sync(kAllLanes, v_sum[r], offset);
    }
    const int row = warp * kDecodeRows + lane / 4 + r * 8;
    if (lane % 4 == 0) {
      part_m[row] = m[r];
      part_l[row] = l[r];
      part_v[row] = v_sum[r];
    }
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<float2*>(merge + size_t(row) * kDim + d * 8 + lane % 4 * 2) =
          make_float2(o[d][2 * r], o[d][2 * r + 1]);
    }
  }
  __syncthreads();
  const DecodePart part(a, blockIdx.z, t.kv_head, blockIdx.x);
  for (int i = threadIdx.x; i < rows * kDim; i += kDecodeThreads) {
    const int row = i / kDim;
    const int d = i % kDim;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) top = fmaxf(top, part_m[w * kDecodeRows + row]);
    const float from = top == -INFINITY ? 0.0f : top;
    float sum = 0;
    float length = 0;
    float weighted = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float share = Exp2(part_m[w * kDecodeRows + row] - from);
      sum = fmaf(share, merge[size_t(w * kDecodeRows + row) * kDim + d], sum);
      length = fmaf(share, part_l[w * kDecodeRows + row], length);
      weighted = fmaf(share, part_v[w * kDecodeRows + row], weighted);
    }
    part.o[size_t(first_row + row) * kDim + d] = sum;
    if (d == 0) {
      part.m[first_row + row] = top;
      part.l[first_row + row] = length;
      part.v[first_row + row] = weighted;
    }
  }
}

// m and l of all splits of one query head. `more`: DecodePart::v, merged alike.
struct MergedSums {
  float base;    // largest m, 0 where nothing was seen
  float length;  // l
  float values;  // v
};

__device__ inline MergedSums MergeSums(const AttentionArguments& a, int chunk, int kv_head,
                                       int splits, int head) {
  float top = -INFINITY;
  for (int s = 0; s < splits; ++s) top = fmaxf(top, DecodePart(a, chunk, kv_head, s).m[head]);
  MergedSums sums = {top == -INFINITY ? 0.0f : top, 0, 0};
  for (int s = 0; s < splits; ++s) {
    const DecodePart part(a, chunk, kv_head, s);
    const float share = Exp2(part.m[head] - sums.base);
    sums.length = fmaf(share, part.l[head], sums.length);
    sums.values = fmaf(share, part.v[head], sums.values);
  }
  return sums;
}

// out of one chunk and KV head, from the parts of its splits. By a block of kDecodeThreads.
// sums: shared memory, [group].
template <class T>
__device__ void MergeParts(MergedSums* sums, const AttentionArguments& a, const AttentionTask& t,
                           int chunk, int splits) {
  for (int head = threadIdx.x; head < a.group; head += kDecodeThreads) {
    sums[head] = MergeSums(a, chunk, t.kv_head, splits, head);
  }
  __syncthreads();
  const int dim = a.kv.head_dim;
  T* const out = static_cast<T*>(a.out) + t.chunk.first_token * a.out_stride +
                 size_t(t.kv_head) * a.group * dim;
  for (int i = threadIdx.x; i < a.group * dim; i += kDecodeThreads) {
    const int head = i / dim;
    float o = 0;
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const DecodePart part(a, chunk, t.kv_head, s);
      o = fmaf(Exp2(part.m[head] - sums[head].base), part.o[i], o);
    }
    out[i] = FromFloat<T>(sums[head].length > 0 ? o / sums[head].length : 0.0f);
  }
}

// Shared memory of a block that merges.
inline size_t MergeBytes(int group) { return group * sizeof(MergedSums); }

// lse[head] of the group's query heads, in units of log 2; returns, to every thread, the mass of
// the chunk weighted by the norms of the values. By a whole block.
__device__ inline float MergeLse(float* lse, const AttentionArguments& a, const AttentionTask& t,
                                 int chunk, int splits) {
  float weighted = 0;
  for (int head = threadIdx.x; head < a.group; head += kDecodeThreads) {
    const MergedSums sums = MergeSums(a, chunk, t.kv_head, splits, head);
    const bool seen = sums.length > 0;
    lse[head] = seen ? sums.base + log2f(sums.length) : INFINITY;
    weighted += seen ? sums.values / sums.length : 0.0f;
  }
  // Its barriers also stand between lse and its readers.
  return ReduceBlock(weighted, Plus{}, 0.0f) / static_cast<float>(a.group);
}

// Mass of a slot, averaged over the query heads. logits: DecodeLogits.
__device__ inline float MassOfSlot(const AttentionArguments& a, const float* logits,
                                   const float* lse, int slot) {
  float sum = 0;
  for (int head = 0; head < a.group; ++head) {
    sum += Exp2(logits[size_t(head) * a.kv.slots + slot] - lse[head]);
  }
  return sum / static_cast<float>(a.group);
}

// Grid: (1 + splits if mass is taken, kv_heads, chunks): block 0 merges the parts, the others turn
// the logits of a split into mass. Dynamic shared memory: MergeBytes.
template <class T>
__global__ void __launch_bounds__(kDecodeThreads) MergeDecode(const AttentionArguments a) {
  extern __shared__ MergedSums sums[];
  LetSuccessorBegin();
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  WaitForPredecessor();
  if (t.chunk.tokens != 1) return;
  const int splits = (t.used + kSplitSlots - 1) / kSplitSlots;
  const int split = static_cast<int>(blockIdx.x) - 1;
  if (split < 0) return MergeParts<T>(sums, a, t, blockIdx.z, splits);
  if (!t.mass || split >= splits) return;
  float* const lse = reinterpret_cast<float*>(sums);
  MergeLse(lse, a, t, blockIdx.z, splits);
  const float* logits = DecodeLogits(a, blockIdx.z, t.kv_head);
  float* const mass = a.mass + (size_t(blockIdx.z) * a.kv.kv_heads + t.kv_head) * a.kv.slots;
  const int end = min((split + 1) * kSplitSlots, t.used);
  for (int slot = split * kSplitSlots + threadIdx.x; slot < end; slot += kDecodeThreads) {
    mass[slot] = MassOfSlot(a, logits, lse, slot);
  }
}

}  // namespace keyline::cuda
