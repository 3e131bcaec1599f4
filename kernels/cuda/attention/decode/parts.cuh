// What blocks know of their slots, and how it becomes outputs and mass. A part is the state of
// flash attention (m, l, o) of one (chunk, KV head, kSplitSlots slots) for every query head of the
// group, and v: l with every weight times the norm of its value, where those are known. Whoever
// merges goes over a head's parts in an order that depends on their number alone.
#pragma once

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

// The parts of one chunk and KV head in scratch memory.
struct DecodeParts {
  float* o;  // [splits, group, head_dim]
  float* m;  // [group, splits]; l, v alike
  float* l;
  float* v;

  __device__ DecodeParts(const AttentionArguments& a, int chunk, int kv_head) {
    const size_t sums = size_t(a.group) * SplitsOf(a.kv);
    o = a.parts + (size_t(chunk) * a.kv.kv_heads + kv_head) * PartFloats(a.kv, a.group);
    m = o + sums * a.kv.head_dim;
    l = m + sums;
    v = l + sums;
  }
};

// Logits [group, slots] of one chunk and KV head, in units of log 2.
__device__ inline float* DecodeLogits(const AttentionArguments& a, int chunk, int kv_head) {
  return a.logits + (size_t(chunk) * a.kv.kv_heads + kv_head) * a.group * a.kv.slots;
}

constexpr int kMergeWarps = 4;
constexpr int kMergeThreads = kMergeWarps * kWarp;
constexpr int kMassSlots = 512;  // of a block that makes mass of logits

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
  const size_t first = size_t(head) * SplitsOf(a.kv);
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
// the chunk weighted by the norms of the values. By a block of kMergeThreads.
__device__ inline float MergeLse(float* lse, const AttentionArguments& a, const AttentionTask& t,
                                 int chunk, int splits) {
  const DecodeParts parts(a, chunk, t.kv_head);
  float weighted = 0;
  for (int head = threadIdx.x / kWarp; head < a.group; head += kMergeWarps) {
    const size_t first = size_t(head) * SplitsOf(a.kv);
    const MergedSums sums = MergeSums(parts.m + first, parts.l + first, parts.v + first, splits);
    if (threadIdx.x % kWarp > 0) continue;
    const bool seen = sums.length > 0;
    lse[head] = seen ? sums.base + log2f(sums.length) : INFINITY;
    weighted += seen ? sums.values / sums.length : 0.0f;
  }
  // Its barriers also stand between lse and its readers.
  return ReduceBlock(weighted, Plus{}, 0.0f) / static_cast<float>(a.group);
}

// Calls body(slot, mass) for each of the kMassSlots slots from `first` on that are below `end`, the
// mass averaged over the query heads. By a block of kMergeThreads.
template <class Body>
__device__ void ForEachMass(const AttentionArguments& a, const float* logits, const float* lse,
                            int first, int end, const Body& body) {
  constexpr int kSlots = kMassSlots / kMergeThreads;  // of a thread: their loads together
  float mass[kSlots] = {};
#pragma unroll 4
  for (int head = 0; head < a.group; ++head) {
    const float* const of_head = logits + size_t(head) * a.kv.slots;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int slot = min(first + i * kMergeThreads + static_cast<int>(threadIdx.x), end - 1);
      mass[i] += Exp2(of_head[slot] - lse[head]);
    }
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int slot = first + i * kMergeThreads + static_cast<int>(threadIdx.x);
    if (slot < end) body(slot, mass[i] / static_cast<float>(a.group));
  }
}

// Grid of the kernels that merge: blocks [0, group) make the output of a query head each, the
// others, where mass is taken, that of kMassSlots slots.
inline dim3 MergeGrid(const AttentionArguments& a, int chunks) {
  const int masses = a.wants_mass ? (a.kv.slots + kMassSlots - 1) / kMassSlots : 0;
  return dim3(a.group + masses, a.kv.kv_heads, chunks);
}

// Writes out and, where it is taken, mass. Grid: MergeGrid. Dynamic shared memory: MergeBytes.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) MergeDecode(const AttentionArguments a) {
  extern __shared__ __align__(16) float merge[];
  LetSuccessorBegin();
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  WaitForPredecessor();
  if (t.chunk.tokens != 1) return;
  const int splits = SplitsOfSlots(t.used);
  const int head = blockIdx.x;
  if (head < a.group) return MergeHead<T>(merge, a, t, blockIdx.z, head, splits);
  const int first = (head - a.group) * kMassSlots;
  if (!t.mass || first >= t.used) return;
  MergeLse(merge, a, t, blockIdx.z, splits);
  float* const mass = a.mass + (size_t(blockIdx.z) * a.kv.kv_heads + t.kv_head) * a.kv.slots;
  ForEachMass(a, DecodeLogits(a, blockIdx.z, t.kv_head), merge, first, t.used,
              [&](int slot, float of_slot) { mass[slot] = of_slot; });
}

}  // namespace keyline::cuda
