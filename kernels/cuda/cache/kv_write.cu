// What a pass writes into the slots of its lanes: first tokens that move, then new ones, whose q
// and k get their norm and RoPE on the way. Rotates halves: dimension i turns with i + d / 2 (Su et
// al. 2021, https://arxiv.org/abs/2104.09864, in the order of GPT-NeoX).
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/cache/head_turn.cuh"
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

// Of a token: vectors of q and (k, v) of KV heads go round the warps of all its blocks.
struct WarpShare {
  int first = static_cast<int>(blockIdx.y * (blockDim.x / kWarp) + threadIdx.x / kWarp);
  int step = static_cast<int>(gridDim.y * (blockDim.x / kWarp));
};

// Grid: (tokens, shares of a token). Dynamic shared memory: [warps][head_dim] floats.
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
  const WarpShare share;
  for (int unit = share.first; unit < spec.heads + spec.kv_heads; unit += share.step) {
    if (unit < spec.heads) {
      RotateQuery(x, row + int64_t{unit} * dim, spec, position);
    } else {
      const int head = unit - spec.heads;
      WriteKv(x, row, kv, table, spec, lane, head, placement.slots[token * kv.kv_heads + head],
              position);
    }
  }
}

// As WriteKv, where HeadTurn does it and K and V are stored as T, in which v is already.
template <class T, int kEach>
__device__ void WriteWholeKv(const HeadTurn<kEach>& turn, const T* row, const KvMemory& kv,
                             const SlotTable& table, const AttentionSpec& spec, int lane, int head,
                             int slot, int32_t position) {
  using Piece = HeadPiece<kEach, T>;
  constexpr int kDim = HeadTurn<kEach>::kDim;
  DeviceCheck(slot >= 0 && slot < table.rules[lane].length);
  const T* const k = row + (spec.heads + head) * kDim;
  const Piece of_k = Piece::Of(k);
  const Piece of_v = Piece::Of(k + spec.kv_heads * kDim);
  float x[kEach];
  of_k.ToFloats(x);
  turn.Norm(spec.k_norm, x);
  turn.Turn(x);
  const Piece turned = Piece::FromFloats(x);
  const auto row_of = [&](std::byte* memory, KvFormat format) {
    return reinterpret_cast<T*>(HeadOf(memory, format, kv, lane, head).row(slot));
  };
  Piece::Of(row_of(kv.k, kv.k_format)) = turned;
  Piece::Of(row_of(kv.v, kv.v_format)) = of_v;
  const float k_lost = table.errors == nullptr ? 0 : LostOf(x, turned);
  float value_norm = 0;
  if (table.value_norms != nullptr) {
    of_v.ToFloats(x);
    value_norm = NormOf(x);
  }
  if (threadIdx.x % kWarp > 0) return;
  WriteEntry(table, lane, head, slot, position, value_norm, k_lost, 0);
}

// The same where HeadTurn does it. kPlain: K and V are stored as T.
template <class T, int kEach, bool kPlain>
__global__ void RotateAndWriteWholeKernel(KvMemory kv, SlotTable table, Placement placement, T* qkv,
                                          int64_t stride, Batch batch, AttentionSpec spec) {
  extern __shared__ float vectors[];
  using Piece = HeadPiece<kEach, T>;
  constexpr int kDim = HeadTurn<kEach>::kDim;
  constexpr int kAtOnce = 4;  // queries whose numbers come together
  const int64_t token = blockIdx.x;
  const int32_t position = batch.positions[token];
  const HeadTurn<kEach> turn(spec.rope, position);
  const int lane = batch.chunk[batch.token_chunk[token]].lane;
  T* const row = qkv + token * stride;
  const WarpShare share;
  for (int first = share.first; first < spec.heads; first += kAtOnce * share.step) {
    Piece pieces[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = first + i * share.step;
      if (head < spec.heads) pieces[i] = Piece::Of(row + head * kDim);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = first + i * share.step;
      if (head >= spec.heads) break;
      float x[kEach];
      pieces[i].ToFloats(x);
      turn.Norm(spec.q_norm, x);
      turn.Turn(x);
      Piece::Of(row + head * kDim) = Piece::FromFloats(x);
    }
  }
  for (int head = share.first; head < spec.kv_heads; head += share.step) {
    const int slot = placement.slots[token * kv.kv_heads + head];
    if constexpr (kPlain) {
      WriteWholeKv(turn, row, kv, table, spec, lane, head, slot, position);
    } else {
      WriteKv(vectors + threadIdx.x / kWarp * kDim, row, kv, table, spec, lane, head, slot,
              position);
    }
  }
}

// Dimensions of a lane where HeadTurn does it; 0: it does not.
int EachOf(const TensorView& qkv, const AttentionSpec& spec) {
  const bool aligned = reinterpret_cast<uintptr_t>(qkv.data) % 16 == 0 && qkv.strides[0] % 8 == 0;
  return aligned ? EachOfHeadTurn(spec.head_dim, spec.rope) : 0;
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
  const dim3 grid(batch.tokens, shares);
  const int each = EachOf(qkv, spec);
  DispatchFloat(qkv.dtype, [&](auto x) {
    using T = decltype(x);
    const auto launch = [&](auto* kernel, size_t shared) {
      kernel<<<grid, warps * kWarp, shared, Native(s)>>>(kv, table, placement, qkv.as<T>(),
                                                         qkv.strides[0], batch, spec);
    };
    if constexpr (sizeof(T) == 2) {
      constexpr KvFormat kPlain = std::is_same_v<T, __half> ? KvFormat::kF16 : KvFormat::kBF16;
      const bool plain = kv.k_format == kPlain && kv.v_format == kPlain;
      const size_t shared = plain ? 0 : warps * vector;
      if (each == 2) {
        return launch(
            plain ? RotateAndWriteWholeKernel<T, 2, true> : RotateAndWriteWholeKernel<T, 2, false>,
            shared);
      }
      if (each == 4) {
        return launch(
            plain ? RotateAndWriteWholeKernel<T, 4, true> : RotateAndWriteWholeKernel<T, 4, false>,
            shared);
      }
    }
    launch(RotateAndWriteKernel<T>, warps * vector);
  });
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
