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

constexpr int kTileThreads = 128;  // of every block that fills tiles

// Slots [first, first + kRows) of one (lane, KV head), all of them physical ones; zeros from `used`
// on, where what an earlier sequence left could be anything. Formats other than T's own are turned
// into T.
template <int kRows, class T, int kDim>
__device__ void FillKv(const Tile<T, kDim>& tile, const KvHead& head, KvFormat format, int first,
                       int used) {
  constexpr int kSize = Pack<T>::kSize;
  constexpr int kPacks = Tile<T, kDim>::kPacks;
  if (!IsQuantized(format)) {
    // Rows of kDim elements lie one behind the other.
    const std::byte* from = head.row(first) + threadIdx.x * sizeof(Pack<T>);
#pragma unroll
    for (int k = 0; k < (kRows * kPacks + kTileThreads - 1) / kTileThreads; ++k) {
      const int i = threadIdx.x + k * kTileThreads;
      if (kRows * kPacks % kTileThreads != 0 && i >= kRows * kPacks) break;
      const int r = i / kPacks;
      CopyAsync16(tile.row(r) + i % kPacks * kSize, from + k * kTileThreads * sizeof(Pack<T>),
                  first + r >= used);
    }
    return;
  }
  for (int i = threadIdx.x; i < kRows * kPacks; i += kTileThreads) {
    const int r = i / kPacks;
    const int d = i % kPacks * kSize;
    const int slot = first + r;
    Pack<T> pack;
    if (slot >= used) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) pack.value[j] = FromFloat<T>(0);
    } else {
      pack = StoredPack::Load<kDim>(head, format, slot, d).template Values<T>();
    }
    *reinterpret_cast<Pack<T>*>(tile.row(r) + d) = pack;
  }
}

// Positions of slots [first, first + rows), -1 where a slot is empty: rows is a multiple of 4, and
// all of them are physical slots. Enqueues copies.
__device__ inline void FillPositions(int32_t* tile, const AttentionTask& t, int first, int rows) {
  for (int i = threadIdx.x * 4; i < rows; i += blockDim.x * 4) {
    CopyAsync16(tile + i, t.slot_pos + first + i, false);
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

// Products of q and k to logits in units of log 2, so that weights are powers of two: one
// multiplication folds the scale. A softcap takes a way of its own, which keeps the usual one
// short.
template <int kTiles>
__device__ void ToLogits(float (&s)[kTiles][4], const AttentionArguments& a) {
  constexpr float kLog2E = 1.4426950408889634f;
  if (a.softcap > 0) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[n][j] = a.softcap * tanhf(s[n][j] * a.scale / a.softcap) * kLog2E;
      }
    }
    return;
  }
  const float factor = a.scale * kLog2E;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) s[n][j] *= factor;
  }
}

}  // namespace keyline::cuda
