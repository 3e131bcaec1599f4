// Launches of the tensor core kernels, for one type of activations.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/attention_chunk.cuh"
#include "kernels/cuda/attention/attention_decode.cuh"
#include "kernels/cuda/cuda_check.h"

namespace keyline::cuda {

// More than 48 KiB of shared memory must be asked for, once a kernel and device.
template <class Kernel>
void AllowShared(Kernel* kernel, size_t bytes) {
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)));
}

template <class T, int kDim>
void AttendMmaOf(cudaStream_t stream, const AttentionArguments& a, const Batch& batch) {
  const unsigned heads = a.kv.kv_heads;
  const unsigned chunks = batch.chunks;
  const unsigned splits = SplitsOf(a.kv);
  if (batch.max_chunk_tokens == 1 || batch.chunks > 1) {
    const unsigned row_tiles = (a.group + kDecodeRows - 1) / kDecodeRows;
    constexpr size_t kBytes = DecodeShared<T, kDim>::kBytes;
    AllowShared(AttendDecode<T, kDim>, kBytes);
    AttendDecode<T, kDim>
        <<<dim3(splits, heads * row_tiles, chunks), kDecodeThreads, kBytes, stream>>>(a);
    CUDA_CHECK(cudaGetLastError());
    MergeDecode<T><<<dim3(a.mass != nullptr ? 1 + splits : 1, heads, chunks), kDecodeThreads,
                     a.group * sizeof(float), stream>>>(a);
    CUDA_CHECK(cudaGetLastError());
  }
  if (batch.max_chunk_tokens == 1) return;
  const unsigned rows = (int64_t{batch.max_chunk_tokens} * a.group + kChunkRows - 1) / kChunkRows;
  constexpr size_t kBytes = ChunkShared<T, kDim>::kBytes;
  AllowShared(AttendChunk<T, kDim>, kBytes);
  AttendChunk<T, kDim><<<dim3(rows, heads, chunks), kChunkThreads, kBytes, stream>>>(a);
  CUDA_CHECK(cudaGetLastError());
  if (a.mass == nullptr) return;
  constexpr size_t kMassBytes = MassShared<T, kDim>::kBytes;
  AllowShared(MassOfChunk<T, kDim>, kMassBytes);
  MassOfChunk<T, kDim>
      <<<dim3(a.kv.slots / kTileSlots, heads, chunks), kChunkThreads, kMassBytes, stream>>>(a);
  CUDA_CHECK(cudaGetLastError());
}

template <class T>
void AttendMma(cudaStream_t stream, const AttentionArguments& a, const Batch& batch) {
  switch (a.kv.head_dim) {
    case 64:
      return AttendMmaOf<T, 64>(stream, a, batch);
    case 80:
      return AttendMmaOf<T, 80>(stream, a, batch);
    case 96:
      return AttendMmaOf<T, 96>(stream, a, batch);
    case 128:
      return AttendMmaOf<T, 128>(stream, a, batch);
    case 256:
      return AttendMmaOf<T, 256>(stream, a, batch);
    default:
      LOG(FATAL) << "no tensor core kernel for heads of " << a.kv.head_dim;
  }
}

}  // namespace keyline::cuda
