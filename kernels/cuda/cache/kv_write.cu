// What a pass writes into the slots of its lanes: first tokens that move, then new ones, whose q
// and k get their norm and RoPE on the way. Rotates halves: dimension i turns with i + d / 2 (Su et
// al. 2021, https://arxiv.org/abs/2104.09864, in the order of GPT-NeoX).
#include <algorithm>

#include "kernels/cuda/cache/kv_encode.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_check.cuh"

namespace keyline::cuda {
namespace {

constexpr int kWarps = 4;  // of a block

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

// A warp a (token, head). From and to never overlap within a (lane, head): the order is free.
__global__ void MoveSlotsKernel(KvMemory kv, SlotTable table, Placement placement, Batch batch) {
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  if (i >= int64_t{batch.tokens} * kv.kv_heads) return;
  const int from = placement.moved_from[i];
  if (from < 0) return;
  const int to = placement.moved_to[i];
  const int lane = batch.chunk[batch.token_chunk[i / kv.kv_heads]].lane;
  const int head = static_cast<int>(i % kv.kv_heads);
  DeviceCheck(from < kv.slots && to >= 0 && to < kv.slots);
  CopyRow(HeadOf(kv.k, kv.k_format, kv, lane, head), from, to);
  CopyRow(HeadOf(kv.v, kv.v_format, kv, lane, head), from, to);
  if (threadIdx.x % kWarp != 0) return;
  const size_t first = (size_t(lane) * table.kv_heads + head) * table.slots;
  table.slot_pos[first + to] = table.slot_pos[first + from];
  if (table.scores != nullptr) table.scores[first + to] = table.scores[first + from];
  if (table.value_norms != nullptr) table.value_norms[first + to] = table.value_norms[first + from];
  if (table.errors != nullptr) table.errors[first + to] = table.errors[first + from];
}

// x: [dim] of one warp in shared memory, made ready by a barrier of the warp; so it is left.
__device__ void NormAndRotate(float* x, int dim, const RmsNorm& norm, const Rope& rope,
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

// A warp a vector of q, or a (k, v) of one KV head. Dynamic shared memory: [warps][head_dim]
// floats.
template <class T>
__global__ void RotateAndWriteKernel(KvMemory kv, SlotTable table, Placement placement, T* qkv,
                                     int64_t stride, Batch batch, AttentionSpec spec) {
  extern __shared__ float vectors[];
  const int dim = spec.head_dim;
  const int lane_of_warp = threadIdx.x % kWarp;
  float* x = vectors + threadIdx.x / kWarp * dim;
  const int units = spec.heads + spec.kv_heads;  // of a token
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  if (i >= int64_t{batch.tokens} * units) return;
  const int64_t token = i / units;
  const int unit = static_cast<int>(i % units);
  const int32_t position = batch.positions[token];
  T* row = qkv + token * stride;
  if (unit < spec.heads) {
    T* q = row + int64_t{unit} * dim;
    LoadHead(x, q, dim);
    NormAndRotate(x, dim, spec.q_norm, spec.rope, position);
    for (int j = lane_of_warp; j < dim; j += kWarp) q[j] = FromFloat<T>(x[j]);
    return;
  }
  const int head = unit - spec.heads;
  const int lane = batch.chunk[batch.token_chunk[token]].lane;
  const int slot = placement.slots[token * kv.kv_heads + head];
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

  const size_t at = (size_t(lane) * table.kv_heads + head) * table.slots + slot;
  if (table.value_norms != nullptr) {
    double squares = 0;
    for (int j = lane_of_warp; j < dim; j += kWarp) squares += static_cast<double>(x[j]) * x[j];
    squares = ReduceWarp(squares, Plus());
    if (lane_of_warp == 0) table.value_norms[at] = static_cast<float>(sqrt(squares));
  }
  if (lane_of_warp == 0) {
    table.slot_pos[at] = position;
    if (table.scores != nullptr) table.scores[at] = 0;
    if (table.errors != nullptr) {
      table.errors[at] =
          __fadd_rn(static_cast<float>(sqrt(k_lost)), static_cast<float>(sqrt(v_lost)));
    }
  }
}

unsigned BlocksFor(int64_t warps, int of_a_block) {
  return static_cast<unsigned>((warps + of_a_block - 1) / of_a_block);
}

}  // namespace

void MoveSlots(Stream& s, const KvMemory& kv, const SlotTable& table, const Placement& placement,
               const Batch& batch) {
  const int64_t moves = int64_t{batch.tokens} * kv.kv_heads;
  MoveSlotsKernel<<<BlocksFor(moves, kWarps), kWarps * kWarp, 0, Native(s)>>>(kv, table, placement,
                                                                              batch);
  CUDA_CHECK(cudaGetLastError());
}

void RotateAndWrite(Stream& s, const KvMemory& kv, const SlotTable& table,
                    const Placement& placement, TensorView qkv, const Batch& batch,
                    const AttentionSpec& spec) {
  const size_t vector = spec.head_dim * sizeof(float);
  constexpr size_t kSharedBytes = 48 << 10;  // what a block has without asking for more
  CHECK_LE(vector, kSharedBytes) << "head_dim " << spec.head_dim;
  const int warps = static_cast<int>(std::min<size_t>(kWarps, kSharedBytes / vector));
  const int64_t units = int64_t{batch.tokens} * (spec.heads + spec.kv_heads);
  DispatchFloat(qkv.dtype, [&](auto x) {
    using T = decltype(x);
    RotateAndWriteKernel<T><<<BlocksFor(units, warps), warps * kWarp, warps * vector, Native(s)>>>(
        kv, table, placement, qkv.as<T>(), qkv.strides[0], batch, spec);
  });
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
