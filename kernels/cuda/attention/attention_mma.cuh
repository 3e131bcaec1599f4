// Launches of the tensor core kernels, for one type of activations.
#pragma once

#include "kernels/cuda/attention/attention_chunk.cuh"
#include "kernels/cuda/attention/decode/parts.cuh"
#include "kernels/cuda/attention/decode_pass.cuh"
#include "kernels/cuda/attention/head_dims.cuh"
#include "kernels/cuda/cuda_check.h"

namespace keyline::cuda {

// More than 48 KiB of shared memory must be asked for, once a kernel and device.
template <class Kernel>
void AllowShared(Kernel* kernel, size_t bytes) {
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)));
}

template <class T, int kDim>
void AttendMmaOf(Stream& s, const AttentionArguments& a, const Batch& batch) {
  const unsigned heads = a.kv.kv_heads;
  const unsigned chunks = batch.chunks;
  if (batch.max_chunk_tokens == 1 || batch.chunks > 1) {
    LaunchDecode(s, {.attention = a, .batch = batch});
    LaunchDependent(s, MergeDecode<T>, MergeBlock::Grid(a, batch.chunks), kMergeThreads,
                    MergeBytes(a), a);
  }
  if (batch.max_chunk_tokens == 1 || AttendWgmma<T>(s, a, batch)) return;
  const unsigned rows = (int64_t{batch.max_chunk_tokens} * a.group + kChunkRows - 1) / kChunkRows;
  const cudaStream_t stream = Native(s);  // makes its device current
  constexpr size_t kBytes = ChunkShared<T, kDim>::kBytes;
  AllowShared(AttendChunk<T, kDim>, kBytes);
  AttendChunk<T, kDim><<<dim3(rows, heads, chunks), kChunkThreads, kBytes, stream>>>(a);
  CUDA_CHECK(cudaGetLastError());
  if (!a.wants_mass) return;
  constexpr size_t kMassBytes = MassShared<T, kDim>::kBytes;
  AllowShared(MassOfChunk<T, kDim>, kMassBytes);
  MassOfChunk<T, kDim>
      <<<dim3(a.kv.slots / kTileSlots, heads, chunks), kChunkThreads, kMassBytes, stream>>>(a);
  CUDA_CHECK(cudaGetLastError());
}

template <class T>
void AttendMma(Stream& s, const AttentionArguments& a, const Batch& batch) {
  DispatchHeadDim(a.kv.head_dim, [&](auto dim) { AttendMmaOf<T, dim.value>(s, a, batch); });
}

template <class T>
void RunDecodePass(Stream& s, const DecodePass& p) {
  const AttentionArguments& a = p.attention;
  // Attention goes on beside the mass of the pass or wave before, which lies in the other half of
  // the scratch memory or in another part of this one. What follows waits for that mass: then its
  // memory is free for the next but one.
  const GoesOnBeside beside(s);
  const int waves = WavesOf(p);
  for (int i = 0; i < waves; ++i) {
    const DecodePass wave = WaveOf(p, i, waves);
    const dim3 grid(a.heads, wave.batch.chunks);
    LaunchDecode(s, wave);
    Join(s);
    // Of the parts FinishDecode and TakeMass both read m, l and v, and TakeMass no others.
    const cudaStream_t side = a.wants_mass ? Beside(s) : nullptr;
    if (wave.before_wave) {
      FinishDecode<T><<<grid, kMergeThreads, MergeBytes(a), side>>>(wave);
      CUDA_CHECK(cudaGetLastError());
    }
    if (a.wants_mass) TakeMass(side, wave);
    if (!wave.before_wave) {
      LaunchDependent(s, FinishDecode<T>, grid, kMergeThreads, MergeBytes(a), wave);
    }
  }
}

}  // namespace keyline::cuda
