// Attention of chunks of one token on tensor cores.
//
// A block goes through its items (work.cuh). Of an item's slots each of its warps takes every
// kDecodeWarps-th portion, which it reads into a ring of its own in shared memory, all but one of
// the ring's portions ahead, across items: no warp waits for another, and the memory never waits
// for a warp. At an item's end the warps' sums are merged into a part (parts.cuh); other kernels
// merge parts and turn logits into mass. In a whole pass the block also turns the queries of its
// items, and the warp that reads the token's slot makes its row (token.cuh), writes it to the cache
// and puts it where it has read the slot already. Everything below is by one warp but where it says
// otherwise.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/decode/keys.cuh"
#include "kernels/cuda/attention/decode/parts.cuh"
#include "kernels/cuda/attention/decode/token.cuh"
#include "kernels/cuda/attention/decode/values.cuh"
#include "kernels/cuda/attention/decode/work.cuh"
#include "kernels/cuda/attention/head_dims.cuh"
#include "kernels/cuda/attention/kv_tiles.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/launch.cuh"

namespace keyline::cuda {

constexpr int kDecodeThreads = kDecodeWarps * kWarp;

template <KvFormat kK, KvFormat kV, int kDim>
struct DecodeShared {
  using OnePortion = Portion<kK, kV, kDim>;
  // Portions of a ring. Three leave room for two blocks on a multiprocessor, two for one where
  // heads are large. Bytes may have two as well (LaunchDecodeOf); nibbles would want more registers
  // than three blocks have.
  static constexpr int kRoom = 112 << 10;
  static constexpr int kPortions = 3 * kDecodeWarps * OnePortion::kBytes <= kRoom ? 3 : 2;
  static constexpr int kLeastPortions =
      kK == KvFormat::kInt8 && kV == KvFormat::kInt8 ? 2 : kPortions;
  static constexpr int Bytes(int portions) { return kDecodeWarps * portions * OnePortion::kBytes; }
  // Blocks for which a multiprocessor of compute capability 9.0 has shared memory; more than three,
  // or four of small heads of whole numbers, would leave each too few registers.
  static constexpr int kMostBlocks = kDim <= 64 && !IsQuantized(kK) ? 4 : 3;
  static constexpr int kBlocks =
      std::min((228 << 10) / (Bytes(kLeastPortions) + 1024), kMostBlocks);
  // A warp's sums lie where its last portion was: of each of kDecodeHeads heads o, m, l and v. The
  // pitch keeps lanes that write the same element of different heads apart.
  static constexpr int kMergePitch = kDim + 4;
  static_assert(kDecodeHeads * kMergePitch * int{sizeof(float)} <= OnePortion::kBytes);
  // Slots that a block's warps take at a time, a portion each.
  static constexpr int kTurnSlots = kDecodeWarps * OnePortion::kSlots;
  static_assert(Splits::kUnit % kTurnSlots == 0);
  // What is on its way when a unit begins is of its first item.
  static_assert(kPortions - 1 <= Splits::kLeastSlots / kTurnSlots);
};

// m, l and v of flash attention of this lane's two heads: m of all lanes with these heads, l and v
// of its own slots until they are merged.
struct DecodeSums {
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0, 0};
  float v[2] = {0, 0};

  // Takes logits of kTiles * 16 slots and turns them into weights; shrink is what sums so far are
  // to be multiplied by.
  template <int kTiles>
  __device__ void Add(float (&s)[kTiles][4], float (&shrink)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = m[h];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) top = fmaxf(top, fmaxf(s[n][h], s[n][2 + h]));
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
      }
      const float base = top == -INFINITY ? 0.0f : top;
      shrink[h] = Exp2(m[h] - base);
      m[h] = top;
      l[h] *= shrink[h];
      v[h] *= shrink[h];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& weight = s[n][2 * i + h];
          weight = Exp2(weight - base);
          l[h] += weight;
        }
      }
    }
  }
};

// What an item's portions share.
struct DecodeItem {
  int position;  // of the query
  int lowest;    // it sees positions above
  int used;      // slots
  int rows;      // query heads
  bool mass;     // weights are kept for it
  bool norms;    // of values, known and wanted
};

// Unseen slots' logits become -inf.
template <int kTiles>
__device__ void MaskLogits(float (&s)[kTiles][4], const DecodeItem& item,
                           const int32_t* positions) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = positions[n * 16 + i * 8 + lane / 4];
      const bool seen = p > item.lowest && p <= item.position;
#pragma unroll
      for (int h = 0; h < 2; ++h) s[n][2 * i + h] = seen ? s[n][2 * i + h] : -INFINITY;
    }
  }
}

// Where the weights of an item go, for whoever makes mass of them.
class WeightKeeper {
 public:
  // rows: query heads of the item, from first_row of the group on.
  __device__ WeightKeeper(const DecodeWeights& to, int group, int first_row, int rows)
      : rows_(rows),
        group_(group),
        pairs_(to.pairs(first_row + RowOf(0), 0) + threadIdx.x % kWarp / 4),
        base_(to.bases(first_row + RowOf(0), 0)) {}

  // Those of the kTiles * 16 slots from `first` on, over 2^m.
  template <int kTiles>
  __device__ void Keep(const float (&s)[kTiles][4], const float (&m)[2], int first) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (RowOf(h) >= rows_) continue;
      const int tile = first / DecodeWeights::kTile;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int at = (tile + n) * group_ + h;
        const __half2 pair = __floats2half2_rn(s[n][h], s[n][2 + h]);
        StoreReadSoon(pairs_ + at * DecodeWeights::kPairs,
                      *reinterpret_cast<const uint32_t*>(&pair));
        if (threadIdx.x % kWarp < 4) {
          StoreReadSoon(base_ + at, __float_as_uint(m[h] == -INFINITY ? 0.0f : m[h]));
        }
      }
    }
  }

 private:
  // Of this lane's two.
  __device__ static int RowOf(int h) { return threadIdx.x % 4 * 2 + h; }

  int rows_;
  int group_;
  __half2* pairs_;
  float* base_;
};

// By all warps: merges what they know, in their order, into the item's part. sums: of warp w at
// sums + w * stride, as DecodeShared says.
template <int kDim, int kPitch>
__device__ void MergeWarps(const float* sums, int stride, const AttentionArguments& a,
                           const DecodeWalk& walk, int rows) {
  const DecodeParts part(a, walk.chunk(), walk.task().kv_head);
  for (int i = threadIdx.x; i < rows * (kDim / 4); i += kDecodeThreads) {
    const int row = i / (kDim / 4);
    const int d = i % (kDim / 4) * 4;
    const float* const of_row = sums + row * kPitch;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) top = fmaxf(top, of_row[w * stride + kDim]);
    const float base = top == -INFINITY ? 0.0f : top;
    float4 o = make_float4(0, 0, 0, 0);
    float length = 0;
    float values = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const auto mlv = *reinterpret_cast<const float4*>(of_row + w * stride + kDim);
      const auto x = *reinterpret_cast<const float4*>(of_row + w * stride + d);
      const float share = Exp2(mlv.x - base);
      o.x = fmaf(share, x.x, o.x);
      o.y = fmaf(share, x.y, o.y);
      o.z = fmaf(share, x.z, o.z);
      o.w = fmaf(share, x.w, o.w);
      length = fmaf(share, mlv.y, length);
      values = fmaf(share, mlv.z, values);
    }
    const int head = walk.first_row() + row;
    *reinterpret_cast<float4*>(part.o + (size_t(walk.split()) * a.group + head) * kDim + d) = o;
    if (d == 0) {
      const size_t at = size_t(head) * part.splits + walk.split();
      part.m[at] = top;
      part.l[at] = length;
      part.v[at] = values;
    }
  }
}

// Grid: as many blocks as fit the device at once. some_portions: of a ring.
template <KvFormat kK, KvFormat kV, int kDim>
__global__ void __launch_bounds__(kDecodeThreads, DecodeShared<kK, kV, kDim>::kBlocks)
    AttendDecode(const DecodePass p, const DecodeUnits units, const int some_portions) {
  using Shared = DecodeShared<kK, kV, kDim>;
  using OnePortion = typename Shared::OnePortion;
  using Token = DecodeToken<kK, kV, kDim>;
  constexpr int kPortions = Shared::kPortions;
  const int portions = Shared::kLeastPortions < kPortions ? some_portions : kPortions;
  const int ring_bytes = portions * OnePortion::kBytes;
  extern __shared__ __align__(16) std::byte shared[];
  // The next wave does not wait for q, k and v, so it must not begin before they are there.
  if (p.after_wave || !p.before_wave) LetSuccessorBegin();
  const AttentionArguments& a = p.attention;
  int items = 0;
  DecodeWalk walk(a, units, items);
  // The kernels before a pass that is not whole may have written any slot.
  if (!p.whole || items == 0) WaitForPredecessor();
  if (items == 0) return;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  std::byte* const ring = shared + warp * ring_bytes;
  const auto first_of = [&](const DecodeWalk& at, int turn) {
    return at.first_slot() + (turn * kDecodeWarps + warp) * OnePortion::kSlots;
  };

  // Portions on their way.
  DecodeWalk ahead = walk;
  int ahead_items = items;
  int ahead_turn = 0;
  int ahead_at = 0;  // in the ring
  const auto fill = [&] {
    if (ahead_items > 0) {
      const int first = first_of(ahead, ahead_turn);
      const AttentionTask& t = ahead.task();
      if (first < t.used) {
        const size_t head = t.slot_pos - a.slot_pos;
        OnePortion::Fill(ring + ahead_at * OnePortion::kBytes,
                         HeadOf<kK, kDim>(a.kv.k, a.kv, t.chunk.lane, t.kv_head),
                         HeadOf<kV, kDim>(a.kv.v, a.kv, t.chunk.lane, t.kv_head), t.slot_pos,
                         a.value_norms == nullptr ? nullptr : a.value_norms + head, first, t.used);
      }
      if (++ahead_turn * Shared::kTurnSlots == ahead.split_slots()) {
        ahead_turn = 0;
        if (--ahead_items > 0) ahead.Next();
      }
    }
    CommitCopies();
    ahead_at = ahead_at + 1 == portions ? 0 : ahead_at + 1;
  };
#pragma unroll 1
  for (int i = 0; i < portions - 1; ++i) fill();
  // The token's, of the unit that begins.
  const auto placed = [&] {
    const AttentionTask& t = walk.task();
    return p.whole ? p.placement.slots[int64_t{t.chunk.first_token} * a.kv.kv_heads + t.kv_head]
                   : 0;
  };
  int slot = placed();
  if (p.after_wave) {
    __threadfence();  // q, k and v were there before this began; what L1 has of them may be older
  } else if (p.whole) {
    WaitForPredecessor();
    if (p.before_wave) LetSuccessorBegin();
  }

  Keys<kK, kDim> keys;
  Values<kV, kDim> values;
  int at = 0;  // in the ring
  // By all warps: what the items of a unit share, of which this block has `left` here and behind.
  const auto enter_unit = [&](int left) {
    const AttentionTask& t = walk.task();
    DecodeQueries queries = {static_cast<const uint16_t*>(a.qkv) +
                                 t.chunk.first_token * a.qkv_stride +
                                 size_t(t.kv_head * a.group + walk.first_row()) * kDim,
                             kDim, min(kDecodeHeads, a.group - walk.first_row())};
    int item = 0;              // that has the token's slot, counted from this one
    int portion = 0;           // of the item's
    std::byte* row = nullptr;  // what the slot gets, where one of these items has it
    if (p.whole) {
      item = slot / walk.split_slots() - walk.split();
      portion = slot % walk.split_slots() / OnePortion::kSlots;
      // The places of the rings that are filled next are nobody's now.
      std::byte* const spare = shared + ahead_at * OnePortion::kBytes;
      if (item >= 0 && item < min(walk.splits_left(), left)) {
        row = spare + portion % kDecodeWarps * ring_bytes;
      }
      Token::Make(p, t, walk.first_row(), queries.rows, spare + warp * ring_bytes, spare, row);
      __syncthreads();
      queries.first = spare + Token::kQueries;
      queries.pitch = Token::kPitch;
    }
    keys.Load(queries, a.dtype);
    __syncthreads();  // the first warp may fill its place again
    if (row == nullptr || warp != portion % kDecodeWarps) return;
    // Blocks with other query heads of the same KV head write the same bytes.
    Token::Write(p, t, slot, row);
    const int turn = portion / kDecodeWarps;
    if (item == 0 && turn < portions - 1) {
      // It has read the slot as it was, or something in between.
      WaitForCopies<0>();
      __syncwarp();
      Token::Put(ring + (at + turn) % portions * OnePortion::kBytes, slot % OnePortion::kSlots,
                 t.chunk.first_position, row);
    } else {
      __threadfence();  // copies read past L1
    }
    __syncwarp();
  };
  for (int i = 0; i < items; ++i) {
    const AttentionTask& t = walk.task();
    if (i > 0 && walk.split() == 0) slot = placed();
    if (i == 0 || walk.split() == 0) enter_unit(items - i);
    const int position = t.chunk.first_position;
    const DecodeItem item = {.position = position,
                             .lowest = LowestSeen(a, position),
                             .used = t.used,
                             .rows = min(kDecodeHeads, a.group - walk.first_row()),
                             .mass = t.mass,
                             .norms = t.mass && a.value_norms != nullptr};
    const WeightKeeper keeper(DecodeWeights(a, walk.chunk(), t.kv_head), a.group, walk.first_row(),
                              item.rows);
    DecodeSums sums;
    values.Clear();
    std::byte* portion = ring;
#pragma unroll 1
    for (int turn = 0; turn * Shared::kTurnSlots < walk.split_slots(); ++turn) {
      fill();
      if (portions == kPortions) {
        WaitForCopies<kPortions - 1>();
      } else {
        WaitForCopies<Shared::kLeastPortions - 1>();
      }
      __syncwarp();  // what other lanes have copied
      portion = ring + at * OnePortion::kBytes;
      at = at + 1 == portions ? 0 : at + 1;
      const int first = first_of(walk, turn);
      if (first < item.used) {
        const auto floats = [&](int offset) {
          return reinterpret_cast<const float2*>(portion + offset);
        };
        float s[OnePortion::kSlots / 16][4];
        float shrink[2];
        keys.Multiply(s, portion, floats(OnePortion::kKeyScales));
        ToLogits(s, a);
        MaskLogits(s, item, reinterpret_cast<const int32_t*>(portion + OnePortion::kPositions));
        sums.Add(s, shrink);
        if (item.mass) keeper.Keep(s, sums.m, first);
        if (item.norms) {
          const auto* norms = reinterpret_cast<const float*>(portion + OnePortion::kNorms);
#pragma unroll
          for (int n = 0; n < OnePortion::kSlots / 16; ++n) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              sums.v[j % 2] += s[n][j] * norms[n * 16 + j / 2 * 8 + lane / 4];
            }
          }
        }
        values.Add(s, shrink, portion + OnePortion::kValues, floats(OnePortion::kValueScales));
      }
      __syncwarp();  // all lanes are done with the portion
    }

    auto* const mine = reinterpret_cast<float*>(portion);
    values.ForEach(
        [&](int d, int h, float sum) { mine[(lane % 4 * 2 + h) * Shared::kMergePitch + d] = sum; });
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        sums.l[h] += __shfl_xor_sync(kAllLanes, sums.l[h], offset);
        sums.v[h] += __shfl_xor_sync(kAllLanes, sums.v[h], offset);
      }
      if (lane < 4) {
        *reinterpret_cast<float4*>(mine + (lane * 2 + h) * Shared::kMergePitch + kDim) =
            make_float4(sums.m[h], sums.l[h], sums.v[h], 0);
      }
    }
    __syncthreads();
    const int stride = ring_bytes / int{sizeof(float)};
    MergeWarps<kDim, Shared::kMergePitch>(mine - warp * stride, stride, a, walk, item.rows);
    __syncthreads();
    if (i + 1 < items) walk.Next();
  }
  if (p.after_wave) WaitForPredecessor();  // what follows may then know all waves to have ended
}

// Blocks of a kernel that the stream's device runs at the same time.
template <class Kernel>
int BlocksAtOnce(Stream& s, Kernel* kernel, int threads, int shared_bytes) {
  Native(s);  // makes its device current
  CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  // All that there is, or blocks that fit may have to wait for others.
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  int blocks = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  CHECK_GT(blocks, 0) << "this GPU has no room for blocks with " << shared_bytes
                      << " bytes of shared memory";
  return blocks * Multiprocessors(s);
}

template <KvFormat kK, KvFormat kV>
void LaunchDecodeOf(Stream& s, const DecodePass& p) {
  const AttentionArguments& a = p.attention;
  DispatchHeadDim(a.kv.head_dim, [&](auto dim) {
    using Shared = DecodeShared<kK, kV, dim.value>;
    const auto kernel = AttendDecode<kK, kV, dim.value>;
    const DecodeUnits units(a, p.batch);
    const int64_t heads = int64_t{units.chunks} * units.of_chunk;
    const auto blocks_with = [&](int portions) {
      return BlocksAtOnce(s, kernel, kDecodeThreads, Shared::Bytes(portions));
    };
    int portions = Shared::kPortions;
    int blocks = blocks_with(portions);
    if constexpr (Shared::kLeastPortions < Shared::kPortions) {
      // Three blocks with short rings read int8 4 to 6 % faster than two with longer ones (H200),
      // if they share the items of full caches, which is what caches are soon, at least as evenly.
      const int64_t items = heads * Splits(a, a.kv.slots).count();
      const auto turns = [&](int64_t of) { return (items + of - 1) / of * of; };
      const int more = blocks_with(Shared::kLeastPortions);
      if (more > blocks && turns(more) <= turns(blocks)) {
        portions = Shared::kLeastPortions;
        blocks = more;
      }
    }
    const int64_t most = heads * Splits::Most(a.kv.slots);  // items
    LaunchDependent(s, kernel, dim3(std::min<int64_t>(most, blocks)), kDecodeThreads,
                    Shared::Bytes(portions), p, units, portions);
  });
}

}  // namespace keyline::cuda
