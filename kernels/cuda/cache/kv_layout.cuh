// How CUDA arranges K and V of one (lane, KV head): what the writer stores and attention reads.
//
//   codes:  [slots][padded head_dim] elements, one row a slot; int4 has two elements a byte, the
//           first half of a block in the high nibbles, blocks one behind the other.
//   scales: behind all codes, [slots][blocks] pairs (scale, zero point); quantised formats only.
// K and V are arranged alike. Rows are padded to 16 elements. Every (lane, KV head) takes
// slots * KvRowBytes bytes, and slots is a multiple of 64: codes and scales begin at multiples of
// 16 bytes. A packed row (ops::PackLane) is the row's codes without padding, then its scales.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/cache_memory.h"

namespace keyline::cuda {

struct KvHead {
  std::byte* codes;
  float2* scales;     // x: scale, y: zero point
  size_t code_bytes;  // of a row
  int blocks;         // pairs of a row

  __device__ std::byte* row(int slot) const { return codes + slot * code_bytes; }
  __device__ float2* row_scales(int slot) const { return scales + size_t(slot) * blocks; }
};

__host__ __device__ constexpr size_t KvCodeBytes(KvFormat f, int head_dim) {
  const size_t elements = (head_dim + 15) / 16 * 16;
  return f == KvFormat::kF32    ? elements * 4
         : f == KvFormat::kInt8 ? elements
         : f == KvFormat::kInt4 ? elements / 2
                                : elements * 2;
}

// `memory`: KvMemory::k or v; code_bytes, blocks: as in KvHead, of its format.
__device__ inline KvHead HeadOf(std::byte* memory, size_t code_bytes, int blocks,
                                const KvMemory& kv, int lane, int head) {
  KvHead out;
  out.code_bytes = code_bytes;
  out.blocks = blocks;
  const size_t row_bytes = code_bytes + blocks * sizeof(float2);
  out.codes = memory + (size_t(lane) * kv.kv_heads + head) * kv.slots * row_bytes;
  out.scales = reinterpret_cast<float2*>(out.codes + kv.slots * code_bytes);
  return out;
}
__device__ inline KvHead HeadOf(std::byte* memory, KvFormat f, const KvMemory& kv, int lane,
                                int head) {
  return HeadOf(memory, KvCodeBytes(f, kv.head_dim), KvBlocks(f, kv.head_dim), kv, lane, head);
}
// Of a format and a head_dim known when this is compiled, which spares divisions.
template <KvFormat kFormat, int kDim>
__device__ KvHead HeadOf(std::byte* memory, const KvMemory& kv, int lane, int head) {
  constexpr size_t kCodeBytes = KvCodeBytes(kFormat, kDim);
  constexpr int kBlocks = KvBlocks(kFormat, kDim);
  return HeadOf(memory, kCodeBytes, kBlocks, kv, lane, head);
}

}  // namespace keyline::cuda
