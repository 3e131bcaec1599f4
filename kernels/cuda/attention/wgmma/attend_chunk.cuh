// Attention of a chunk of several tokens: flash attention (Dao 2023,
// https://arxiv.org/abs/2307.08691) over the slots of a cache, whose positions are in any order,
// with the products of one tile under way while the softmax of the next is taken (Shah et al. 2024,
// https://arxiv.org/abs/2407.08608, sections 3.1 and 3.2).
//
// A block has 128 query rows (token, head of the group). Its first warpgroup looks at the positions
// of each tile of slots, leaves out what no row sees, and copies the others; the two others
// multiply, 64 rows each, taking turns to begin their products.
#pragma once

#include "kernels/cuda/attention/wgmma/tiles.cuh"
#include "kernels/cuda/device_check.cuh"

namespace keyline::cuda::wgmma {

enum TileKind : int { kEnd, kSeenByAll, kSeenBySome };

template <class T, int kDim>
struct AttendShared {
  static constexpr int kSlots = kDim <= 128 ? 128 : 64;  // of a tile
  static constexpr int kStages = kDim <= 128 ? 3 : 2;
  using Queries = Tile<T, kDim, kRows>;
  using Slots = Tile<T, kDim, kSlots>;

  alignas(kAtomBytes) unsigned char q[Queries::kBytes];
  alignas(kAtomBytes) unsigned char k[kStages][Slots::kBytes];
  alignas(kAtomBytes) unsigned char v[kStages][Slots::kBytes];
  alignas(16) int32_t positions[kStages][kSlots];  // written with K, where some rows do not see all
  TileKind kind[kStages];
  Barrier k_full[kStages], k_free[kStages], v_full[kStages], v_free[kStages];
};

// Named barriers.
constexpr int kQueriesThere = 1;  // and the next: of each multiplying warpgroup
constexpr int kTurn = 3;          // and the next

// The tiles that some row of the block sees, in order, and kEnd.
template <class T, int kDim>
__device__ void FillTiles(AttendShared<T, kDim>& shared, const AttentionArguments& a,
                          const StagedTask& t, int first_position, int last_position) {
  using Shared = AttendShared<T, kDim>;
  constexpr int kSlots = Shared::kSlots;
  constexpr int kStages = Shared::kStages;
  const int lane = threadIdx.x % kWarp;
  const bool first_warp = threadIdx.x % kWarpgroup < kWarp;
  // Before the first eviction slots are positions.
  const int begin = t.in_order ? (LowestSeen(a, first_position) + 1) / kSlots : 0;
  const int earlier = t.sorted ? t.used - t.chunk.tokens : 0;  // slots, in front
  const int end_slot = t.sorted ? earlier + last_position + 1 - t.chunk.first_position : t.used;
  const int end = (end_slot + kSlots - 1) / kSlots;
  // Every row sees what came before the chunk.
  const auto seen_by_all = [&](int tile) {
    return a.window == 0 && (tile + 1) * kSlots <= earlier;
  };

  int n = 0;          // tiles passed on
  int previous = -1;  // the last of them
  const auto wait_until_free = [&](const Barrier* free, int i) {
    if (i >= kStages) free[i % kStages].Wait(i / kStages - 1);
  };
  const auto pass_kind = [&](TileKind kind) {  // and positions
    if (!first_warp) return;
    if (lane == 0) shared.kind[n % kStages] = kind;
    shared.k_full[n % kStages].Arrive();
  };
  const auto pass_v = [&](int i) {  // of tile `previous`, passed on as number i
    wait_until_free(shared.v_free, i);
    FillSlots(typename Shared::Slots(shared.v[i % kStages]), t.v, t.quantized_v, a.kv.v_format,
              previous * kSlots, t.used, shared.v_full[i % kStages]);
  };
  int4 loaded;
  const auto load = [&](int tile) {
    if (!seen_by_all(tile)) loaded = LoadPositions(t, a.kv.slots, tile * kSlots, kSlots);
  };
  load(begin);
  for (int i = begin; i < end; ++i) {
    const int first = i * kSlots;
    TileKind kind = kSeenByAll;
    int4 positions = make_int4(0, 0, 0, 0);
    if (!seen_by_all(i)) {
      const TilePositions p = Understand(t, loaded, first, kSlots);
      positions = p.mine;
      if (p.oldest > last_position || p.newest <= LowestSeen(a, first_position)) {
        kind = kEnd;  // nothing to see
      } else if (!p.full || p.newest > first_position || p.oldest <= LowestSeen(a, last_position)) {
        kind = kSeenBySome;
      }
    }
    if (i + 1 < end) load(i + 1);
    if (kind == kEnd) continue;
    wait_until_free(shared.k_free, n);
    if (kind == kSeenBySome && first_warp && lane * 4 < kSlots) {
      *reinterpret_cast<int4*>(shared.positions[n % kStages] + lane * 4) = positions;
    }
    pass_kind(kind);
    FillSlots(typename Shared::Slots(shared.k[n % kStages]), t.k, t.quantized_k, a.kv.k_format,
              first, t.used, shared.k_full[n % kStages]);
    if (n > 0) pass_v(n - 1);
    previous = i;
    ++n;
  }
  wait_until_free(shared.k_free, n);
  pass_kind(kEnd);
  shared.k_full[n % kStages].Arrive();
  if (n > 0) pass_v(n - 1);
}

// What a thread knows of its two rows.
struct Rows {
  int position[2];
  float m[2] = {-INFINITY, -INFINITY};  // largest product, or logit where there is a softcap
  float l[2] = {0, 0};                  // sum of the weights, of this thread's columns
  float shrink[2];                      // what earlier sums are multiplied by after a tile
};

// Leaves out what a row does not see.
template <int kSlots>
__device__ void Mask(float (&s)[kSlots / 2], const Rows& rows, const AttentionArguments& a,
                     const int32_t* positions) {
  const int32_t* const mine = positions + threadIdx.x % 4 * 2;
  if (a.window > 0) {
    const unsigned reach = ReachOf(a);
#pragma unroll
    for (int n = 0; n < kSlots / 8; ++n) {
      const int2 p = *reinterpret_cast<const int2*>(mine + n * 8);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const unsigned back = rows.position[j / 2] - (j % 2 == 0 ? p.x : p.y);
        s[4 * n + j] = back < reach ? s[4 * n + j] : -INFINITY;
      }
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < kSlots / 8; ++n) {
    const int2 p = *reinterpret_cast<const int2*>(mine + n * 8);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      s[4 * n + j] = (j % 2 == 0 ? p.x : p.y) <= rows.position[j / 2] ? s[4 * n + j] : -INFINITY;
    }
  }
}

// From logits times 1 / factor to weights.
template <int kSlots>
__device__ void Softmax(float (&s)[kSlots / 2], Rows& rows, float factor) {
  float m[2] = {rows.m[0], rows.m[1]};
#pragma unroll
  for (int n = 0; n < kSlots / 8; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) m[r] = fmaxf(m[r], fmaxf(s[4 * n + 2 * r], s[4 * n + 2 * r + 1]));
  }
  float base[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    m[r] = fmaxf(m[r], __shfl_xor_sync(kAllLanes, m[r], 1));
    m[r] = fmaxf(m[r], __shfl_xor_sync(kAllLanes, m[r], 2));
    base[r] = m[r] == -INFINITY ? 0.0f : __fmul_rn(m[r], factor);
    // Rounded alike, so that it is 1 where nothing larger came: a tile of which a row sees nothing
    // leaves it as it is, and how many of those there are depends on where the prompt was cut.
    rows.shrink[r] = Exp2(__fmul_rn(rows.m[r], factor) - base[r]);
    rows.m[r] = m[r];
    rows.l[r] *= rows.shrink[r];
  }
#pragma unroll
  for (int n = 0; n < kSlots / 8; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float& first = s[4 * n + 2 * r];
      float& second = s[4 * n + 2 * r + 1];
      first = Exp2(fmaf(first, factor, -base[r]));
      second = Exp2(fmaf(second, factor, -base[r]));
      rows.l[r] += first + second;
    }
  }
}

// Grid: (row blocks, pairs of chunk and KV head), the last rows first: they see most.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    AttendChunk([[maybe_unused]] AttentionArguments a, [[maybe_unused]] int first_pair) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(kAtomBytes) unsigned char memory[];
  using Shared = AttendShared<T, kDim>;
  constexpr int kSlots = Shared::kSlots;
  constexpr int kStages = Shared::kStages;
  constexpr int kPart = kDim <= 128 ? kDim : 128;  // dimensions that one product makes
  constexpr int kParts = kDim / kPart;
  Shared& shared = *reinterpret_cast<Shared*>(memory);

  const StagedTask t = ReadTaskOf(a, first_pair);
  const int all_rows = t.chunk.tokens * a.group;
  const int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  if (t.chunk.tokens == 1 || first_row >= all_rows) return;
  if (threadIdx.x == 0) {
    DeviceCheck(SharedAddress(memory) % kAtomBytes == 0);
    for (int i = 0; i < kStages; ++i) {
      shared.k_full[i].Init(kWarpgroup + kWarp);
      shared.v_full[i].Init(kWarpgroup);
      shared.k_free[i].Init(kMultipliers * kWarpgroup);
      shared.v_free[i].Init(kMultipliers * kWarpgroup);
    }
  }
  __syncthreads();

  if (threadIdx.x < kWarpgroup) {
    GiveRegisters<kFillRegisters>();
    const int last_row = min(first_row + kRows, all_rows) - 1;
    FillTiles(shared, a, t, t.chunk.first_position + first_row / a.group,
              t.chunk.first_position + last_row / a.group);
    return;
  }
  TakeRegisters<kMultiplyRegisters>();
  const int group = threadIdx.x / kWarpgroup - 1;  // of warps
  const int lane = threadIdx.x % kWarp;
  const int warp_row = (threadIdx.x - kWarpgroup) / kWarp * 16;  // in the tile
  const typename Shared::Queries q(shared.q);
  FillQueries<16>(q, warp_row, a, t, first_row + warp_row);
  CommitCopies();
  WaitForCopies<0>();
  PublishToProducts();
  SyncThreads(kQueriesThere + group, kWarpgroup);

  Rows rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = min(first_row + warp_row + lane / 4 + r * 8, all_rows - 1);
    rows.position[r] = t.chunk.first_position + row / a.group;
  }
  const float factor = FactorOf(a);
  float s[kSlots / 2];
  uint32_t p[kSlots / 4];  // weights of a tile, as a product reads them
  float o[kParts][kPart / 2];
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
#pragma unroll
    for (int j = 0; j < kPart / 2; ++j) o[i][j] = 0;
  }

  const auto multiply_qk = [&](int n) {
    MultiplyQK(s, q, group * 64, typename Shared::Slots(shared.k[n % kStages]), 0);
    CommitProducts();
  };
  const auto multiply_pv = [&](int n) {
    const uint64_t values = typename Shared::Slots(shared.v[n % kStages]).matrix(0);
    constexpr uint64_t kStep = 16 * kPanelRowBytes / 16;
    constexpr uint64_t kPartStep = kPart / kPanelElements * Shared::Slots::kPanelBytes / 16;
#pragma unroll
    for (int i = 0; i < kSlots / 16; ++i) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        MultiplyAsync(T(), o[part], p + 4 * i, values + i * kStep + part * kPartStep, 1);
      }
    }
    CommitProducts();
  };
  const auto pin_o_p = [&] {
#pragma unroll
    for (int i = 0; i < kParts; ++i) Pin(o[i]);
    Pin(p);
  };
  // From products with the keys of tile n to weights.
  const auto weigh = [&](int n, TileKind kind) {
    Softcap(s, a);
    if (kind == kSeenBySome) Mask<kSlots>(s, rows, a, shared.positions[n % kStages]);
    shared.k_free[n % kStages].Arrive();
    Softmax<kSlots>(s, rows, factor);
    Pin(s);  // done while products are under way, not after
  };
  const auto pack = [&] {
#pragma unroll
    for (int i = 0; i < kSlots / 4; ++i) p[i] = PackTwo<T>(s[2 * i], s[2 * i + 1]);
  };

  const auto next_kind = [&](int n) {
    shared.k_full[n % kStages].Wait(n / kStages);
    return shared.kind[n % kStages];
  };

  // Where both groups have come as far, this one's turn to begin products.
  if (group == 1) CountThreads(kTurn, kMultipliers * kWarpgroup);
  TileKind kind = next_kind(0);
  if (kind != kEnd) {
    PublishToProducts();
    Pin(s);
    BeginProducts();
    multiply_qk(0);
    WaitForProducts<0>();
    Pin(s);
    weigh(0, kind);
    pack();
    kind = next_kind(1);
    int n = 0;
    for (; kind != kEnd; ++n) {
      shared.v_full[n % kStages].Wait(n / kStages);
      SyncThreads(kTurn + group, kMultipliers * kWarpgroup);
      PublishToProducts();
      Pin(s);
      pin_o_p();
      BeginProducts();
      multiply_qk(n + 1);
      multiply_pv(n);
      CountThreads(kTurn + 1 - group, kMultipliers * kWarpgroup);
      WaitForProducts<1>();
      Pin(s);
      weigh(n + 1, kind);
      // Between the softmax and the wait for products, which the assembler would otherwise move
      // ahead of the softmax: it moves nothing over a loop.
      kind = next_kind(n + 2);
      WaitForProducts<0>();
      pin_o_p();
      shared.v_free[n % kStages].Arrive();
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
#pragma unroll
        for (int j = 0; j < kPart / 2; ++j) o[i][j] *= rows.shrink[j / 2 % 2];
      }
      pack();
    }
    shared.v_full[n % kStages].Wait(n / kStages);
    PublishToProducts();
    pin_o_p();
    BeginProducts();
    multiply_pv(n);
    WaitForProducts<0>();
    pin_o_p();
  }
  if (group == 0) SyncThreads(kTurn, kMultipliers * kWarpgroup);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float l = rows.l[r];
    l += __shfl_xor_sync(kAllLanes, l, 1);
    l += __shfl_xor_sync(kAllLanes, l, 2);
    const int row = first_row + warp_row + lane / 4 + r * 8;
    if (row >= all_rows) continue;
    const float inverse = l > 0 ? 1.0f / l : 0.0f;
    const size_t token = t.chunk.first_token + row / a.group;
    const int head = t.kv_head * a.group + row % a.group;
    T* const out = static_cast<T*>(a.out) + token * a.out_stride + size_t(head) * kDim;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int d = 0; d < kPart / 8; ++d) {
        *reinterpret_cast<uint32_t*>(out + i * kPart + d * 8 + lane % 4 * 2) =
            PackTwo<T>(o[i][4 * d + 2 * r] * inverse, o[i][4 * d + 2 * r + 1] * inverse);
      }
    }
    if (t.mass && lane % 4 == 0) {
      a.lse[token * a.heads + head] = l > 0 ? fmaf(rows.m[r], factor, log2f(l)) : INFINITY;
    }
  }
#endif
}

}  // namespace keyline::cuda::wgmma
