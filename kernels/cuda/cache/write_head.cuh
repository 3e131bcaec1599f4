// One head vector on its way into a slot: the norm and turn of q and k, and the move of a slot to
// another. A warp a vector. Shared by the operations of kv_write.cu and by the decode pass.
#pragma once

#include "kernels/cuda/cache/kv_encode.cuh"
#include "kernels/cuda/cache/kv_layout.cuh"
#include "kernels/cuda/device_check.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops/batch.h"

namespace keyline::cuda {

__device__ inline void CopyRow(const KvHead& head, int from, int to) {
  const int lane = threadIdx.x % kWarp;
  // Rows of codes are multiples of 8 bytes.
  const auto* from_codes = reinterpret_cast<const uint2*>(head.row(from));
  auto* to_codes = reinterpret_cast<uint2*>(head.row(to));
  for (int i = lane; i < static_cast<int>(head.code_bytes / sizeof(uint2)); i += kWarp) {
    to_codes[i] = from_codes[i];
  }
  for (int i = lane; i < head.blocks; i += kWarp) {
    head.row_scales(to)[i] = head.row_scales(from)[i];
  }
}

// What the table has of a slot. Called by one thread.
__device__ inline void MoveEntry(const SlotTable& table, int lane, int head, int from, int to) {
  const size_t first = (size_t(lane) * table.kv_heads + head) * table.slots;
  table.slot_pos[first + to] = table.slot_pos[first + from];
  if (table.scores != nullptr) table.scores[first + to] = table.scores[first + from];
  if (table.value_norms != nullptr) table.value_norms[first + to] = table.value_norms[first + from];
  if (table.errors != nullptr) table.errors[first + to] = table.errors[first + from];
}

// What the table keeps of a slot that a new token takes. value_norm: of v, read where the table has
// norms; lost: L2 norms of what quantisation lost of k and of v. Called by one thread.
__device__ inline void WriteEntry(const SlotTable& table, int lane, int head, int slot,
                                  int32_t position, float value_norm, float k_lost, float v_lost) {
  const size_t at = (size_t(lane) * table.kv_heads + head) * table.slots + slot;
  table.slot_pos[at] = position;
  if (table.scores != nullptr) table.scores[at] = 0;
  if (table.value_norms != nullptr) table.value_norms[at] = value_norm;
  if (table.errors != nullptr) table.errors[at] = __fadd_rn(k_lost, v_lost);
}

// x: [dim] of one warp in shared memory, made ready by a barrier of the warp; so it is left.
__device__ inline void NormAndRotate(float* x, int dim, const RmsNorm& norm, const Rope& rope,
                                     int32_t position) {
  const int lane = threadIdx.x % kWarp;
  if (norm.weight != nullptr) {
    float squares = 0;
    for (int i = lane; i < dim; i += kWarp) squares = fmaf(x[i], x[i], squares);
    squares = ReduceWarp(squares, Plus());
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + norm.eps);
    for (int i = lane; i < dim; i += kWarp) x[i] = x[i] * scale * norm.weight[i];
    __syncwarp();
  }
  if (rope.rotary_dim > 0) {
    DeviceCheck(position >= 0 && position < rope.positions);
    const int half = rope.rotary_dim / 2;
    const auto* turns = reinterpret_cast<const float2*>(rope.table) + int64_t{position} * half;
    for (int i = lane; i < half; i += kWarp) {
      const float cosine = turns[i].x;
      const float sine = turns[i].y;
      const float a = x[i];
      const float b = x[i + half];
      // As the CPU rounds it.
      x[i] = __fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine));
      x[i + half] = __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine));
    }
    __syncwarp();
  }
}

template <class T>
__device__ void LoadHead(float* x, const T* from, int dim) {
  __syncwarp();  // the vector before has been used
  for (int i = threadIdx.x % kWarp; i < dim; i += kWarp) x[i] = ToFloat(from[i]);
  __syncwarp();
}

// The L2 norm, in every thread of the warp.
__device__ inline float NormOf(const float* x, int dim) {
  double squares = 0;
  for (int i = threadIdx.x % kWarp; i < dim; i += kWarp) {
    squares += static_cast<double>(x[i]) * x[i];
  }
  return static_cast<float>(sqrt(ReduceWarp(squares, Plus())));
}

// x: working memory of the warp, [head_dim].
template <class T>
__device__ void RotateQuery(float* x, T* q, const AttentionSpec& spec, int32_t position) {
  LoadHead(x, q, spec.head_dim);
  NormAndRotate(x, spec.head_dim, spec.q_norm, spec.rope, position);
  for (int j = threadIdx.x % kWarp; j < spec.head_dim; j += kWarp) q[j] = FromFloat<T>(x[j]);
}

// k and v of one token and KV head, of a row of qkv, into a slot, with all that the table keeps.
template <class T>
__device__ void WriteKv(float* x, const T* row, const KvMemory& kv, const SlotTable& table,
                        const AttentionSpec& spec, int lane, int head, int slot, int32_t position) {
  const int dim = spec.head_dim;
  DeviceCheck(slot >= 0 && slot < table.rules[lane].length);
  const T* k = row + int64_t{spec.heads + head} * dim;
  const T* v = k + int64_t{spec.kv_heads} * dim;
  LoadHead(x, k, dim);
  NormAndRotate(x, dim, spec.k_norm, spec.rope, position);
  const double k_lost =
      EncodeRow(kv.k_format, x, dim, HeadOf(kv.k, kv.k_format, kv, lane, head), slot);
  LoadHead(x, v, dim);
  const double v_lost =
      EncodeRow(kv.v_format, x, dim, HeadOf(kv.v, kv.v_format, kv, lane, head), slot);
  const float value_norm = table.value_norms == nullptr ? 0 : NormOf(x, dim);
  if (threadIdx.x % kWarp > 0) return;
  WriteEntry(table, lane, head, slot, position, value_norm, static_cast<float>(sqrt(k_lost)),
             static_cast<float>(sqrt(v_lost)));
}

}  // namespace keyline::cuda
