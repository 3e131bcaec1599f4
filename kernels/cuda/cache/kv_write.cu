// What a pass writes into the slots of its lanes: first tokens that move, then new ones, whose q
// and k get their norm and RoPE on the way. Rotates halves: dimension i turns with i + d / 2 (Su et
// al. 2021, https://arxiv.org/abs/2104.09864, in the order of GPT-NeoX).
#include <algorithm>

#include "kernels/cuda/cache/write_head.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_check.cuh"

namespace keyline::cuda {
namespace {

constexpr int kWarps = 4;                   // of a block
constexpr int kBlocksAtOnce = 64 / kWarps;  // of a multiprocessor

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
  if (threadIdx.x % kWarp == 0) MoveEntry(table, lane, head, from, to);
}

// A warp takes vectors of q, and (k, v) of KV heads, of one token. Grid: (tokens, shares of a
// token). Dynamic shared memory: [warps][head_dim] floats.
template <class T>
__global__ void RotateAndWriteKernel(KvMemory kv, SlotTable table, Placement placement, T* qkv,
                                     int64_t stride, Batch batch, AttentionSpec spec) {
  extern __shared__ float vectors[];
  const int dim = spec.head_dim;
  float* x = vectors + threadIdx.x / kWarp * dim;
  const int64_t token = blockIdx.x;
  const int32_t position = batch.positions[token];
  const int lane = batch.chunk[batch.token_chunk[token]].lane;
  T* row = qkv + token * stride;
  const int warps = blockDim.x / kWarp;
  for (int unit = blockIdx.y * warps + threadIdx.x / kWarp; unit < spec.heads + spec.kv_heads;
       unit += gridDim.y * warps) {
    if (unit < spec.heads) {
      RotateQuery(x, row + int64_t{unit} * dim, spec, position);
    } else {
      const int head = unit - spec.heads;
      WriteKv(x, row, kv, table, spec, lane, head, placement.slots[token * kv.kv_heads + head],
              position);
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
  // As few shares as fill the device: a warp's vectors have the token's rotation in common.
  const unsigned shares = std::min(BlocksFor(spec.heads + spec.kv_heads, warps),
                                   BlocksFor(kBlocksAtOnce * Multiprocessors(s), batch.tokens));
  DispatchFloat(qkv.dtype, [&](auto x) {
    using T = decltype(x);
    RotateAndWriteKernel<T>
        <<<dim3(batch.tokens, shares), warps * kWarp, warps * vector, Native(s)>>>(
            kv, table, placement, qkv.as<T>(), qkv.strides[0], batch, spec);
  });
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
