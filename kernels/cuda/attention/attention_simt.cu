// Attention without tensor cores: all formats, all head sizes, float32 throughout. The path of
// float32 models, and the simple version that the fast kernels are held against.
//
// A query row is (token, query head). Chunks of several tokens give each row to a warp; a chunk of
// one token gives each row to a block, whose warps share the slots. Lanes of a warp are slots while
// it computes logits, and dimensions while it sums values.
#include <algorithm>

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/kv_values.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kDimsPerLane = kMostHeadDim / kWarp;
constexpr int kMassSlots = 128;  // of a block of the mass kernel, one a thread
constexpr float kNone = -INFINITY;

__device__ float Logit(const AttentionArguments& a, const KvHead& k, int slot, const float* q) {
  float dot = 0;
  for (int d = 0; d < a.kv.head_dim; ++d) {
    dot = fmaf(q[d], StoredValue(k, a.kv.k_format, a.kv.head_dim, slot, d), dot);
  }
  const float logit = dot * a.scale;
  return a.softcap > 0 ? a.softcap * tanhf(logit / a.softcap) : logit;
}

// e^(x - m), 0 where there is nothing to see.
__device__ float Weight(float x, float m) { return x == kNone ? 0.0f : expf(x - m); }

// kRowWarps: warps that share a row, 1 or kWarps. Grid: (row blocks, kv_heads, chunks).
template <class T, int kRowWarps>
__global__ void __launch_bounds__(kThreads) AttendRows(const AttentionArguments a) {
  __shared__ float queries[kWarps][kMostHeadDim];
  __shared__ float part_m[kWarps], part_l[kWarps];
  __shared__ float part_o[kWarps][kMostHeadDim];
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  if ((t.chunk.tokens == 1) != (kRowWarps == kWarps)) return;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int row = blockIdx.x * (kWarps / kRowWarps) + (kRowWarps == 1 ? warp : 0);
  const bool mine = row < t.chunk.tokens * a.group;
  const int token = mine ? row / a.group : 0;
  const int head = t.kv_head * a.group + (mine ? row % a.group : 0);
  const int dim = a.kv.head_dim;
  const int position = t.chunk.first_position + token;
  const int lowest = LowestSeen(a, position);

  float* const q = queries[warp];
  const T* from = static_cast<const T*>(a.qkv) + (t.chunk.first_token + token) * a.qkv_stride +
                  size_t(head) * dim;
  for (int d = lane; d < dim; d += kWarp) q[d] = ToFloat(from[d]);
  __syncwarp();

  const KvHead k = HeadOf(a.kv.k, a.kv.k_format, a.kv, t.chunk.lane, t.kv_head);
  const KvHead v = HeadOf(a.kv.v, a.kv.v_format, a.kv, t.chunk.lane, t.kv_head);
  float m = kNone;
  float l = 0;
  float o[kDimsPerLane] = {};
  const int end = !mine ? 0 : t.in_order ? min(t.used, position + 1) : t.used;
  for (int first = (kRowWarps == 1 ? 0 : warp) * kWarp; first < end; first += kRowWarps * kWarp) {
    const int slot = first + lane;
    float logit = kNone;
    if (slot < end) {
      const int pos = t.slot_pos[slot];
      if (pos > lowest && pos <= position) logit = Logit(a, k, slot, q);
    }
    const float new_m = fmaxf(m, ReduceWarp(logit, Maximum{}));
    if (new_m == kNone) continue;
    const float weight = Weight(logit, new_m);
    const float shrink = Weight(m, new_m);
    l = l * shrink + ReduceWarp(weight, Plus{});
    m = new_m;
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) o[i] *= shrink;
    const int count = min(kWarp, end - first);
    for (int j = 0; j < count; ++j) {
      const float w = __shfl_sync(kAllLanes, weight, j);
      if (w == 0) continue;
#pragma unroll
      for (int i = 0; i < kDimsPerLane; ++i) {
        const int d = lane + i * kWarp;
        if (d < dim) o[i] = fmaf(w, StoredValue(v, a.kv.v_format, dim, first + j, d), o[i]);
      }
    }
  }

  if (kRowWarps > 1) {
    if (lane == 0) {
      part_m[warp] = m;
      part_l[warp] = l;
    }
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) {
      if (lane + i * kWarp < dim) part_o[warp][lane + i * kWarp] = o[i];
    }
    __syncthreads();
    if (warp > 0) return;
    m = kNone;
    l = 0;
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, part_m[w]);
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) o[i] = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float share = Weight(part_m[w], m);
      l += share * part_l[w];
#pragma unroll
      for (int i = 0; i < kDimsPerLane; ++i) {
        if (lane + i * kWarp < dim) o[i] = fmaf(share, part_o[w][lane + i * kWarp], o[i]);
      }
    }
  }
  if (!mine) return;
  T* const out =
      static_cast<T*>(a.out) + (t.chunk.first_token + token) * a.out_stride + size_t(head) * dim;
  const float inverse = l > 0 ? 1.0f / l : 0.0f;
#pragma unroll
  for (int i = 0; i < kDimsPerLane; ++i) {
    const int d = lane + i * kWarp;
    if (d < dim) out[d] = FromFloat<T>(o[i] * inverse);
  }
  if (t.mass && lane == 0) {
    // Where nothing was seen no weight is, either: e^(x - inf) = 0.
    a.lse[size_t(t.chunk.first_token + token) * a.heads + head] = l > 0 ? m + logf(l) : INFINITY;
  }
}

// mass[c, g, j] from the rows' log-sum-exps. A thread has a slot and takes the rows in order.
template <class T>
__global__ void __launch_bounds__(kMassSlots) MassOfSlots(const AttentionArguments a) {
  __shared__ float q[kMostHeadDim];
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  const int first = blockIdx.x * kMassSlots;
  if (!t.mass || first >= t.used) return;
  const int slot = first + threadIdx.x;
  const bool mine = slot < t.used;
  const int pos = mine ? t.slot_pos[slot] : -1;
  const int dim = a.kv.head_dim;
  const KvHead k = HeadOf(a.kv.k, a.kv.k_format, a.kv, t.chunk.lane, t.kv_head);
  float sum = 0;
  for (int row = 0; row < t.chunk.tokens * a.group; ++row) {
    const int token = t.chunk.first_token + row / a.group;
    const int head = t.kv_head * a.group + row % a.group;
    const T* from = static_cast<const T*>(a.qkv) + token * a.qkv_stride + size_t(head) * dim;
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += kMassSlots) q[d] = ToFloat(from[d]);
    __syncthreads();
    const int position = t.chunk.first_position + row / a.group;
    if (pos > LowestSeen(a, position) && pos <= position) {
      sum += expf(Logit(a, k, slot, q) - a.lse[size_t(token) * a.heads + head]);
    }
  }
  if (mine) {
    a.mass[(size_t(blockIdx.z) * a.kv.kv_heads + t.kv_head) * a.kv.slots + slot] =
        sum / static_cast<float>(a.group);
  }
}

}  // namespace

template <class T>
void AttendSimt(Stream& s, const AttentionArguments& a, const Batch& batch) {
  const auto blocks = [&](int rows, int per_block) {
    return dim3((rows + per_block - 1) / per_block, a.kv.kv_heads, batch.chunks);
  };
  const bool ones = batch.max_chunk_tokens == 1 || batch.chunks > 1;
  if (ones) {
    AttendRows<T, kWarps><<<blocks(a.group, 1), kThreads, 0, Native(s)>>>(a);
    CUDA_CHECK(cudaGetLastError());
  }
  if (batch.max_chunk_tokens > 1) {
    AttendRows<T, 1>
        <<<blocks(batch.max_chunk_tokens * a.group, kWarps), kThreads, 0, Native(s)>>>(a);
    CUDA_CHECK(cudaGetLastError());
  }
  if (a.wants_mass) {
    MassOfSlots<T><<<blocks(a.kv.slots, kMassSlots), kMassSlots, 0, Native(s)>>>(a);
    CUDA_CHECK(cudaGetLastError());
  }
}

template void AttendSimt<float>(Stream&, const AttentionArguments&, const Batch&);
template void AttendSimt<__half>(Stream&, const AttentionArguments&, const Batch&);
template void AttendSimt<__nv_bfloat16>(Stream&, const AttentionArguments&, const Batch&);

}  // namespace keyline::cuda
