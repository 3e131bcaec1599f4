// What blocks know of their slots, and how it becomes outputs and mass. A part is the state of
// flash attention (m, l, o) of one (chunk, KV head, split) for every query head of the group, and
// v: l with every weight times the norm of its value, where those are known. Whoever merges goes
// over a head's parts in an order that depends on their number alone.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

// The parts of one chunk and KV head in scratch memory.
struct DecodeParts {
  int splits;  // that there is room for
  float* o;    // [splits, group, head_dim]
  float* m;    // [group, splits]; l, v alike
  float* l;
  float* v;

  __device__ DecodeParts(const AttentionArguments& a, int chunk, int kv_head)
      : splits(Splits::Most(a.kv.slots)) {
    const size_t sums = size_t(a.group) * splits;
    o = a.parts + (size_t(chunk) * a.kv.kv_heads + kv_head) * PartFloats(a.kv, a.group);
    m = o + sums * a.kv.head_dim;
    l = m + sums;
    v = l + sums;
  }
};

// The softmax weights of one chunk and KV head, before they are divided by their sum: of each tile
// of 16 slots 2^(logit - base), where base is the largest logit that their warp had seen. They are
// kept as float16, whose rounding of 2^-11 is far less than what 2-byte queries and keys do to
// them, since writing and reading them again is most of what mass costs; sums are float32. A tile's
// lie together for all heads, so that memory gets whole lines.
class DecodeWeights {
 public:
  static constexpr int kTile = kWeightTile;
  static constexpr int kPairs = kTile / 2;

  __device__ DecodeWeights(const AttentionArguments& a, int chunk, int kv_head)
      : group_(a.group),
        weights_(a.weights +
                 (size_t(chunk) * a.kv.kv_heads + kv_head) * WeightFloats(a.kv.slots, a.group)),
        bases_(weights_ + size_t(a.group) * a.kv.slots / 2) {}

  // Slots i and i + 8 of the tile. [tiles, group, kPairs], from (tile, head) on.
  __device__ __half2* pairs(int head, int tile) const {
    return reinterpret_cast<__half2*>(weights_) + (size_t(tile) * group_ + head) * kPairs;
  }
  // [tiles, group], from (tile, head) on.
  __device__ float* bases(int head, int tile) const {
    return bases_ + size_t(tile) * group_ + head;
  }

 private:
  int group_;
  float* weights_;
  float* bases_;
};

constexpr int kMergeWarps = 4;
constexpr int kMergeThreads = kMergeWarps * kWarp;

// m, l and v of all parts of one query head.
struct MergedSums {
  float base;    // largest m, 0 where nothing was seen
  float length;  // l
  float values;  // v
};

// By a warp; every thread gets them. m, l, v: of the head, [splits]. The first 32 of each, all
// that there are of 8,192 slots, come together: there is little else to do while one waits.
__device__ inline MergedSums MergeSums(const float* m, const float* l, const float* v, int splits) {
  const int lane = threadIdx.x % kWarp;
  float first_m = -INFINITY, first_l = 0, first_v = 0;
  if (lane < splits) {
    first_m = m[lane];
    first_l = l[lane];
    first_v = v[lane];
  }
  float top = first_m;
  for (int s = lane + kWarp; s < splits; s += kWarp) top = fmaxf(top, m[s]);
  top = ReduceWarp(top, Maximum{});
  MergedSums sums = {top == -INFINITY ? 0.0f : top, 0, 0};
  const auto add = [&](float of_m, float of_l, float of_v) {
    const float share = Exp2(of_m - sums.base);
    sums.length = fmaf(share, of_l, sums.length);
    sums.values = fmaf(share, of_v, sums.values);
  };
  add(first_m, first_l, first_v);
  for (int s = lane + kWarp; s < splits; s += kWarp) add(m[s], l[s], v[s]);
  sums.length = ReduceWarp(sums.length, Plus{});
  sums.values = ReduceWarp(sums.values, Plus{});
  return sums;
}

// Shared memory of a block that merges.
inline size_t MergeBytes(const AttentionArguments& a) {
  return (size_t(kMergeWarps) * a.kv.head_dim + a.group) * sizeof(float);
}

// out of one query head of a group: the splits go round the warps. By a block of kMergeThreads.
// sums: shared memory, [kMergeWarps, head_dim].
template <class T>
__device__ void MergeHead(float* sums, const AttentionArguments& a, const AttentionTask& t,
                          int chunk, int head, int splits) {
  const DecodeParts parts(a, chunk, t.kv_head);
  const size_t first = size_t(head) * parts.splits;
  const float* const m = parts.m + first;
  const int dim = a.kv.head_dim;
  const int warp = threadIdx.x / kWarp;
  const auto o_of = [&](int s, int d) {
    return *reinterpret_cast<const float4*>(parts.o + (size_t(s) * a.group + head) * dim + d);
  };
  // Of the first splits o and m come while m, l and v of all are merged.
  constexpr int kFirst = 8;
  float4 first_o[kFirst];
  float first_m[kFirst];
  const int begin = threadIdx.x % kWarp * 4;
#pragma unroll
  for (int i = 0; i < kFirst; ++i) {
    const int s = warp + i * kMergeWarps;
    const bool there = s < splits && begin < dim;
    first_o[i] = there ? o_of(s, begin) : make_float4(0, 0, 0, 0);
    first_m[i] = there ? m[s] : -INFINITY;
  }
  const MergedSums merged = MergeSums(m, parts.l + first, parts.v + first, splits);
  for (int d = begin; d < dim; d += kWarp * 4) {
    float4 sum = make_float4(0, 0, 0, 0);
    const auto add = [&](float of_m, const float4& o) {
      const float share = Exp2(of_m - merged.base);
      sum.x = fmaf(share, o.x, sum.x);
      sum.y = fmaf(share, o.y, sum.y);
      sum.z = fmaf(share, o.z, sum.z);
      sum.w = fmaf(share, o.w, sum.w);
    };
    int s = warp;
    if (d == begin) {
#pragma unroll
      for (int i = 0; i < kFirst; ++i) add(first_m[i], first_o[i]);
      s += kFirst * kMergeWarps;
    }
#pragma unroll 8
    for (; s < splits; s += kMergeWarps) add(m[s], o_of(s, d));
    *reinterpret_cast<float4*>(sums + warp * dim + d) = sum;
  }
  __syncthreads();
  for (int s = threadIdx.x; a.discards && s < splits; s += kMergeThreads) {
    const float* const o = parts.o + (size_t(s) * a.group + head) * dim;
    Discard(o, o + dim, 0, 1);
  }
  T* const out = static_cast<T*>(a.out) + t.chunk.first_token * a.out_stride +
                 (size_t(t.kv_head) * a.group + head) * dim;
  for (int d = threadIdx.x; d < dim; d += kMergeThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kMergeWarps; ++w) sum += sums[w * dim + d];
    out[d] = FromFloat<T>(merged.length > 0 ? sum / merged.length : 0.0f);
  }
}

// lse[head] of the group's query heads, in units of log 2; returns, to every thread, the mass of
// the chunk weighted by the norms of the values, or 0 where that is not wanted. By a block of
// kMergeThreads.
__device__ inline float MergeLse(float* lse, const AttentionArguments& a, const AttentionTask& t,
                                 int chunk, int splits, bool with_norms) {
  const DecodeParts parts(a, chunk, t.kv_head);
  float weighted = 0;
  for (int head = threadIdx.x / kWarp; head < a.group; head += kMergeWarps) {
    const size_t first = size_t(head) * parts.splits;
    const MergedSums sums = MergeSums(parts.m + first, parts.l + first, parts.v + first, splits);
    if (threadIdx.x % kWarp > 0) continue;
    const bool seen = sums.length > 0;
    lse[head] = seen ? sums.base + log2f(sums.length) : INFINITY;
    weighted += seen ? sums.values / sums.length : 0.0f;
  }
  __syncthreads();  // lse has readers
  return with_norms ? ReduceBlock(weighted, Plus{}, 0.0f) / static_cast<float>(a.group) : 0.0f;
}

// The mass of eight slots of a thread of a block of kMergeThreads: first() + i and, eight further
// on, first() + 8 + i, for i < 4. What it needs is on its way from the moment when it is made.
class SlotMass {
 public:
  static constexpr int kSlots = 8;
  static constexpr int kBlockSlots = kSlots * kMergeThreads;

  // begin: the block's first slot, of `used` that the weights have.
  __device__ SlotMass(const DecodeWeights& weights, int group, int begin, int used)
      : weights_(weights),
        group_(group),
        tile_(begin / DecodeWeights::kTile + static_cast<int>(threadIdx.x) / 2),
        there_(tile_ * DecodeWeights::kTile < used) {
#pragma unroll
    for (int head = 0; head < kAhead; ++head) {
      if (there_ && head < group_) ahead_[head] = Load(head);
    }
  }

  // Whether the weights have any of these slots; else nothing below may be called.
  __device__ bool there() const { return there_; }
  __device__ int first() const { return tile_ * DecodeWeights::kTile + threadIdx.x % 2 * 4; }

  // mass[i + 4 * j] = that of slot first() + 8 * j + i, averaged over the query heads. lse: theirs.
  __device__ void Sum(const float* lse, float (&mass)[kSlots]) const {
#pragma unroll
    for (float& of_slot : mass) of_slot = 0;
#pragma unroll
    for (int head = 0; head < kAhead; ++head) {
      if (head < group_) Add(ahead_[head], lse[head], mass);
    }
#pragma unroll 4
    for (int head = kAhead; head < group_; ++head) Add(Load(head), lse[head], mass);
    const float share = 1.0f / static_cast<float>(group_);
#pragma unroll
    for (float& of_slot : mass) of_slot *= share;
  }

  // By all threads of the block, when they have their sums: the weights are not needed any more.
  __device__ void Discard(int used) const {
    __syncthreads();
    constexpr int kTiles = kBlockSlots / DecodeWeights::kTile;
    const int first = tile_ - static_cast<int>(threadIdx.x) / 2;  // of the block
    const int end = min(first + kTiles, (used + DecodeWeights::kTile - 1) / DecodeWeights::kTile);
    cuda::Discard(weights_.pairs(0, first), weights_.pairs(0, end), threadIdx.x, kMergeThreads);
    cuda::Discard(weights_.bases(0, first), weights_.bases(0, end), threadIdx.x, kMergeThreads);
  }

 private:
  static constexpr int kAhead = 4;  // query heads whose weights come at once

  struct OfHead {
    uint4 pairs;
    float base;
  };
  __device__ OfHead Load(int head) const {
    return {reinterpret_cast<const uint4*>(weights_.pairs(head, tile_))[threadIdx.x % 2],
            *weights_.bases(head, tile_)};
  }
  __device__ static void Add(const OfHead& of, float lse, float (&mass)[kSlots]) {
    const float scale = Exp2(of.base - lse);
    const uint32_t pairs[4] = {of.pairs.x, of.pairs.y, of.pairs.z, of.pairs.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&pairs[i]));
      mass[i] = fmaf(pair.x, scale, mass[i]);
      mass[i + 4] = fmaf(pair.y, scale, mass[i + 4]);
    }
  }

  const DecodeWeights weights_;
  const int group_;
  const int tile_;
  const bool there_;
  OfHead ahead_[kAhead];
};

// What a block of MergeDecode does: where mass is taken, that of kBlockSlots slots; or, behind all
// those, the output of a query head.
struct MergeBlock {
  int chunk;
  int kv_head;
  int head;   // of the group; -1: mass
  int begin;  // slot

  static dim3 Grid(const AttentionArguments& a, int chunks) {
    constexpr int kSlots = SlotMass::kBlockSlots;
    const int masses = a.wants_mass ? (a.kv.slots + kSlots - 1) / kSlots : 0;
    return dim3(a.kv.kv_heads, chunks, masses + a.group);
  }
  __device__ explicit MergeBlock(const AttentionArguments& a)
      : chunk(static_cast<int>(blockIdx.y)), kv_head(static_cast<int>(blockIdx.x)) {
    const int masses = static_cast<int>(gridDim.z) - a.group;
    const int number = static_cast<int>(blockIdx.z);
    head = number < masses ? -1 : number - masses;
    begin = number * SlotMass::kBlockSlots;
  }
};

// Writes out and, where it is taken, mass. Grid: MergeBlock::Grid. Dynamic shared memory:
// MergeBytes.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) MergeDecode(const AttentionArguments a) {
  extern __shared__ __align__(16) float merge[];
  LetSuccessorBegin();
  const MergeBlock block(a);
  const AttentionTask t = TaskOf(a, block.chunk, block.kv_head);
  WaitForPredecessor();
  if (t.chunk.tokens != 1) return;
  const int splits = Splits(a, t.used).count();
  if (block.head >= 0) return MergeHead<T>(merge, a, t, block.chunk, block.head, splits);
  if (!t.mass || block.begin >= t.used) return;
  const SlotMass masses(DecodeWeights(a, block.chunk, t.kv_head), a.group, block.begin, t.used);
  MergeLse(merge, a, t, block.chunk, splits, /*with_norms=*/false);
  if (masses.there()) {
    float mass[SlotMass::kSlots];
    masses.Sum(merge, mass);
    float* const to = a.mass + (size_t(block.chunk) * a.kv.kv_heads + t.kv_head) * a.kv.slots;
#pragma unroll
    for (int i = 0; i < SlotMass::kSlots; ++i) to[masses.first() + i / 4 * 8 + i % 4] = mass[i];
  }
  if (a.discards) masses.Discard(t.used);
}

}  // namespace keyline::cuda
