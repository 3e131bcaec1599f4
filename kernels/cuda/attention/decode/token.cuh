// What a pass makes of its token's row of qkv, for one KV head, in shared memory: the queries as
// they are multiplied, and K and V as the cache stores them, rounded or quantised once from
// float32.
#pragma once

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/decode/keys.cuh"
#include "kernels/cuda/attention/decode/rows.cuh"
#include "kernels/cuda/cache/head_turn.cuh"
#include "kernels/cuda/cache/write_head.cuh"

namespace keyline::cuda {

constexpr int kDecodeWarps = 4;  // of a block

// Calls body with a value of the activations' type, which is that of plain K.
template <KvFormat kK, class Body>
__device__ void DispatchActivation(DType dtype, const Body& body) {
  if constexpr (kK == KvFormat::kBF16) {
    body(__nv_bfloat16());
  } else if constexpr (kK == KvFormat::kF16) {
    body(__half());
  } else if (dtype == DType::kBF16) {
    body(__nv_bfloat16());
  } else {
    body(__half());
  }
}

template <KvFormat kK, KvFormat kV, int kDim>
struct DecodeToken {
  using OnePortion = Portion<kK, kV, kDim>;
  using K = typename OnePortion::K;
  using V = typename OnePortion::V;
  // Offsets in memory of the size of a portion: floats [kDim], where a vector is normed and turned;
  // queries [kDecodeHeads], so far apart that a warp's reads of them meet different banks; and what
  // the slot gets.
  static constexpr int kQueries = kDim * int{sizeof(float)};
  static constexpr int kPitch = kDim + 8;
  static constexpr int kKey = kQueries + kDecodeHeads * kPitch * int{sizeof(uint16_t)};
  static constexpr int kKeyScales = kKey + K::kRowBytes;
  static constexpr int kValue = kKeyScales + K::ScaleBytes(1);
  static constexpr int kValueScales = kValue + V::kRowBytes;
  static constexpr int kLost = kValueScales + V::ScaleBytes(1);  // of k, of v: L2 norms
  static constexpr int kNorm = kLost + 2 * int{sizeof(float)};   // of v
  static_assert(kNorm + int{sizeof(float)} <= OnePortion::kBytes);
  static_assert(kDim % 16 == 0, "rows without padding");

  // By all warps of the block, and not before a barrier complete. Queries [first_row, first_row +
  // rows) of the group go to `queries`, k and v to `row` where it is not null. vector: of the warp.
  // All three are the beginnings of memory as above, and may be the same.
  __device__ static void Make(const DecodePass& p, const AttentionTask& t, int first_row, int rows,
                              std::byte* vector, std::byte* queries, std::byte* row) {
    const AttentionArguments& a = p.attention;
    float* const x = reinterpret_cast<float*>(vector);
    const int32_t position = t.chunk.first_position;
    DispatchActivation<kK>(a.dtype, [&](auto type) {
      using T = decltype(type);
      if constexpr (kDim == 64 || kDim == 128) {
        if (EachOfHeadTurn(kDim, p.spec.rope) > 0) {
          return MakeWhole<T>(p, t, first_row, rows, vector, queries, row);
        }
      }
      const T* const from = static_cast<const T*>(a.qkv) + t.chunk.first_token * a.qkv_stride;
      for (int i = threadIdx.x / kWarp; i < rows + (row == nullptr ? 0 : 2); i += kDecodeWarps) {
        if (i < rows) {
          LoadHead(x, from + size_t(t.kv_head * a.group + first_row + i) * kDim, kDim);
          NormAndRotate(x, kDim, p.spec.q_norm, p.spec.rope, position);
          T* const to = reinterpret_cast<T*>(queries + kQueries) + i * kPitch;
          for (int d = threadIdx.x % kWarp; d < kDim; d += kWarp) to[d] = FromFloat<T>(x[d]);
        } else if (i == rows) {
          LoadHead(x, from + size_t(a.heads + t.kv_head) * kDim, kDim);
          NormAndRotate(x, kDim, p.spec.k_norm, p.spec.rope, position);
          Store(kK, x, row + kKey, row + kKeyScales, row + kLost);
        } else {
          LoadHead(x, from + size_t(a.heads + a.kv.kv_heads + t.kv_head) * kDim, kDim);
          Store(kV, x, row + kValue, row + kValueScales, row + kLost + sizeof(float));
          if (a.value_norms != nullptr) {
            const float norm = NormOf(x, kDim);
            if (threadIdx.x % kWarp == 0) *reinterpret_cast<float*>(row + kNorm) = norm;
          }
        }
      }
    });
  }

  // By a warp, like all that follows. row: as Make left it. Into the cache, with all that the table
  // keeps of the slot.
  __device__ static void Write(const DecodePass& p, const AttentionTask& t, int slot,
                               const std::byte* row) {
    const KvMemory& kv = p.attention.kv;
    const int lane = t.chunk.lane;
    DeviceCheck(slot >= 0 && slot < p.table.rules[lane].length);
    const KvHead k = HeadOf<kK, kDim>(kv.k, kv, lane, t.kv_head);
    const KvHead v = HeadOf<kV, kDim>(kv.v, kv, lane, t.kv_head);
    Copy<K::kRowBytes>(k.row(slot), row + kKey);
    Copy<V::kRowBytes>(v.row(slot), row + kValue);
    if constexpr (K::kScales > 0) Copy<K::ScaleBytes(1)>(k.row_scales(slot), row + kKeyScales);
    if constexpr (V::kScales > 0) Copy<V::ScaleBytes(1)>(v.row_scales(slot), row + kValueScales);
    if (threadIdx.x % kWarp > 0) return;
    const auto* const lost = reinterpret_cast<const float*>(row + kLost);
    WriteEntry(p.table, lane, t.kv_head, slot, t.chunk.first_position,
               *reinterpret_cast<const float*>(row + kNorm), lost[0], lost[1]);
  }

  // In the place of what a portion has of its slot number `slot`.
  __device__ static void Put(std::byte* portion, int slot, int32_t position, const std::byte* row) {
    const int lane = threadIdx.x % kWarp;
    for (int i = lane; i < K::kRowBytes / 8; i += kWarp) {
      Unit(portion + K::Offset(slot, i / 2), i % 2) = Unit(row + kKey, i);
    }
    for (int i = lane; i < V::kRowBytes / 8; i += kWarp) {
      Unit(portion + OnePortion::kValues + V::Offset(slot, i / 2), i % 2) = Unit(row + kValue, i);
    }
    if constexpr (K::kScales > 0) {
      Copy<K::ScaleBytes(1)>(portion + OnePortion::kKeyScales + K::ScaleBytes(slot),
                             row + kKeyScales);
    }
    if constexpr (V::kScales > 0) {
      Copy<V::ScaleBytes(1)>(portion + OnePortion::kValueScales + V::ScaleBytes(slot),
                             row + kValueScales);
    }
    if (lane > 0) return;
    reinterpret_cast<int32_t*>(portion + OnePortion::kPositions)[slot] = position;
    reinterpret_cast<float*>(portion + OnePortion::kNorms)[slot] =
        *reinterpret_cast<const float*>(row + kNorm);
  }

 private:
  // Make where HeadTurn does it. Of all vectors the same code, as far as can be: it runs once, and
  // so waits for its instructions.
  template <class T>
  __device__ static void MakeWhole(const DecodePass& p, const AttentionTask& t, int first_row,
                                   int rows, std::byte* vector, std::byte* queries,
                                   std::byte* row) {
    constexpr int kEach = kDim / kWarp;
    using Piece = HeadPiece<kEach, T>;
    const AttentionArguments& a = p.attention;
    const T* const from = static_cast<const T*>(a.qkv) + t.chunk.first_token * a.qkv_stride;
    const int count = rows + (row == nullptr ? 0 : 2);
    const auto load = [&](int i) {
      const int head = i < rows    ? t.kv_head * a.group + first_row + i
                       : i == rows ? a.heads + t.kv_head
                                   : a.heads + a.kv.kv_heads + t.kv_head;
      return Piece::Of(from + size_t(head) * kDim);
    };
    int i = threadIdx.x / kWarp;
    if (i >= count) return;
    Piece next = load(i);
    const HeadTurn<kEach> turn(p.spec.rope, t.chunk.first_position);
#pragma unroll 1
    for (; i < count; i += kDecodeWarps) {
      const Piece piece = next;
      if (i + kDecodeWarps < count) next = load(i + kDecodeWarps);
      float x[kEach];
      piece.ToFloats(x);
      if (i <= rows) {
        turn.Norm(i < rows ? p.spec.q_norm : p.spec.k_norm, x);
        turn.Turn(x);
      }
      if (i < rows) {
        Piece::Of(reinterpret_cast<T*>(queries + kQueries) + i * kPitch) = Piece::FromFloats(x);
      } else if (i == rows) {
        StoreWhole<kK, T>(p, x, vector, row + kKey, row + kKeyScales, row + kLost);
      } else {
        StoreWhole<kV, T>(p, x, vector, row + kValue, row + kValueScales,
                          row + kLost + sizeof(float));
        if (a.value_norms != nullptr) {
          const float norm = NormOf(x);
          if (threadIdx.x % kWarp == 0) *reinterpret_cast<float*>(row + kNorm) = norm;
        }
      }
    }
  }
  template <KvFormat kFormat, class T, int kEach>
  __device__ static void StoreWhole(const DecodePass& p, const float (&x)[kEach], std::byte* vector,
                                    std::byte* codes, std::byte* scales, std::byte* lost) {
    if constexpr (IsQuantized(kFormat)) {
      auto* const floats = reinterpret_cast<float*>(vector);
      HeadPiece<kEach, float>::Of(floats) = HeadPiece<kEach, float>::FromFloats(x);
      __syncwarp();
      Store(kFormat, floats, codes, scales, lost);
      __syncwarp();  // the next vector may be written
    } else {
      const auto stored = HeadPiece<kEach, T>::FromFloats(x);
      HeadPiece<kEach, T>::Of(reinterpret_cast<T*>(codes)) = stored;
      if (p.table.errors == nullptr) return;
      const float of = LostOf(x, stored);
      if (threadIdx.x % kWarp == 0) *reinterpret_cast<float*>(lost) = of;
    }
  }

  __device__ static uint2& Unit(std::byte* of, int i) { return reinterpret_cast<uint2*>(of)[i]; }
  __device__ static uint2 Unit(const std::byte* of, int i) {
    return reinterpret_cast<const uint2*>(of)[i];
  }
  template <int kBytes>
  __device__ static void Copy(void* to, const std::byte* from) {
    static_assert(kBytes % 8 == 0);
    for (int i = threadIdx.x % kWarp; i < kBytes / 8; i += kWarp) {
      Unit(static_cast<std::byte*>(to), i) = Unit(from, i);
    }
  }
  __device__ static void Store(KvFormat format, const float* x, std::byte* codes, std::byte* scales,
                               std::byte* lost) {
    const KvHead row = {codes, reinterpret_cast<float2*>(scales), 0, 0};
    const double squares = EncodeRow(format, x, kDim, row, 0);
    if (threadIdx.x % kWarp == 0) {
      *reinterpret_cast<float*>(lost) = static_cast<float>(sqrt(squares));
    }
  }
};

}  // namespace keyline::cuda
