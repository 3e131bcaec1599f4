// Tiles of rows in shared memory for the tensor core kernels: queries, and K or V of some slots.
//
// A tile has rows of kDim elements and 16 bytes between them, so that the eight rows of an ldmatrix
// meet eight different groups of banks.
#pragma once

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/kv_values.cuh"
#include "kernels/cuda/mma.cuh"

namespace keyline::cuda {

template <class T, int kDim>
struct Tile {
  static constexpr int kPitch = kDim + 16 / sizeof(T);
  static constexpr int kPacks = kDim * sizeof(T) / 16;  // of a row
  T* data;
  __device__ T* row(int r) const { return data + r * kPitch; }
  static constexpr size_t Bytes(int rows) { return size_t(rows) * kPitch * sizeof(T); }
};

// Slots [first, first + rows) of one (lane, KV head); zeros from `used` on, where what an earlier
// sequence left could be anything. Formats other than T's own are turned into T.
template <class T, int kDim>
__device__ void FillKv(const Tile<T, kDim>& tile, const KvHead& head, KvFormat format, int first,
                       int rows, int used) {
  constexpr int kSize = Pack<T>::kSize;
  constexpr int kPacks = Tile<T, kDim>::kPacks;
  for (int i = threadIdx.x; i < rows * kPacks; i += blockDim.x) {
    const int r = i / kPacks;
    const int d = i % kPacks * kSize;
    const int slot = first + r;
    if (!IsQuantized(format)) {
      // Slots beyond the physical ones are beyond the used ones, too: read row 0, keep zeros.
      const bool zeros = slot >= used;
      CopyAsync16(tile.row(r) + d, head.row(zeros ? 0 : slot) + d * sizeof(T), zeros);
      continue;
    }
    Pack<T> pack;
    if (slot >= used) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) pack.value[j] = FromFloat<T>(0);
    } else if (format == KvFormat::kInt8) {
      const float2 scale_zero = head.row_scales(slot)[0];
      const uint2 codes = *reinterpret_cast<const uint2*>(head.row(slot) + d);
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        const unsigned code = ((j < 4 ? codes.x : codes.y) >> (j % 4 * 8)) & 0xff;
        pack.value[j] = FromFloat<T>(Dequantized(code, scale_zero));
      }
    } else {
      // Blocks of 32, the last one of 16 where kDim is not a multiple of 32: a half has 16 or 8
      // elements, whole packs either way.
      const int block = d / 32;
      const int begin = block * 32;
      const int half = (kDim - begin < 32 ? kDim - begin : 32) / 2;
      const int i_in_block = d - begin;
      const bool high = i_in_block < half;
      const uint2 codes = *reinterpret_cast<const uint2*>(head.row(slot) + begin / 2 +
                                                          (high ? i_in_block : i_in_block - half));
      const float2 scale_zero = head.row_scales(slot)[block];
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        const unsigned pair = ((j < 4 ? codes.x : codes.y) >> (j % 4 * 8)) & 0xff;
        pack.value[j] = FromFloat<T>(Dequantized(high ? pair >> 4 : pair & 15, scale_zero));
      }
    }
    *reinterpret_cast<Pack<T>*>(tile.row(r) + d) = pack;
  }
}

// Query rows [first, first + rows) of a task, a row being (token, query head of the group); zeros
// behind the last. Enqueues copies.
template <class T, int kDim>
__device__ void FillQueries(const Tile<T, kDim>& tile, const AttentionArguments& a,
                            const AttentionTask& t, int first, int rows) {
  constexpr int kPacks = Tile<T, kDim>::kPacks;
  const int all = t.chunk.tokens * a.group;
  for (int i = threadIdx.x; i < rows * kPacks; i += blockDim.x) {
    const int r = i / kPacks;
    const int d = i % kPacks * Pack<T>::kSize;
    const bool zeros = first + r >= all;
    const int row = zeros ? 0 : first + r;
    const T* from = static_cast<const T*>(a.qkv) +
                    (t.chunk.first_token + row / a.group) * a.qkv_stride +
                    size_t(t.kv_head * a.group + row % a.group) * kDim + d;
    CopyAsync16(tile.row(r) + d, from, zeros);
  }
}

// Logits in units of log 2, so that weights are powers of two: one multiplication folds the scale.
struct LogitRule {
  float factor;   // scale * log2(e), or scale alone where there is a softcap
  float softcap;  // 0: none

  __device__ explicit LogitRule(const AttentionArguments& a)
      : factor(a.softcap > 0 ? a.scale : a.scale * 1.4426950408889634f), softcap(a.softcap) {}
  __device__ float operator()(float dot) const {
    const float logit = dot * factor;
    return softcap > 0 ? softcap * tanhf(logit / softcap) * 1.4426950408889634f : logit;
  }
};

}  // namespace keyline::cuda
