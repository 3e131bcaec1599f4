// How a whole pass of chunks of one token, whose tokens have their slots (PlaceDecode), takes two
// kernels a layer, and a third beside what follows: AttendDecode turns q and k, writes k and v and
// attends (decode/attend.cuh); FinishDecode merges its parts and advances the lanes; TakeMass
// (decode/take_mass.cu) adds the mass to the scores, which nobody reads before the next pass.
// Together with PlaceDecode they do what the operations of cache_ops.h do one by one. Of a large
// pass they go over the chunks in waves.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/decode/parts.cuh"
#include "kernels/cuda/cache/ranking.cuh"

namespace keyline::cuda {

// Grid: (heads, chunks). Dynamic shared memory: MergeBytes.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) FinishDecode(const DecodePass p) {
  extern __shared__ __align__(16) float merge[];
  LetSuccessorBegin();
  const AttentionArguments& a = p.attention;
  const int chunk = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x);
  const AttentionTask t = TaskOf(a, chunk, head / a.group);
  const int splits = Splits(a, t.used).count();
  const LaneRules rules = p.table.rules[t.chunk.lane];
  WaitForPredecessor();
  MergeHead<T>(merge, a, t, chunk, head % a.group, splits);
  // Nobody else reads the progress meanwhile.
  if (head == 0 && threadIdx.x == 0) AdvanceLane(p.table, t.chunk, rules);
}

// A pass that takes mass writes softmax weights and reads them again, through the L2 cache. If they
// are many, most of them go to memory in between, and memory is slow at what is written now and
// then: so a large pass is attended in waves of chunks, and while one is attended the outputs of
// the wave before are merged and its mass is taken. Llama-8B, 32 sequences of 16,384 slots (H200):
// 532 us a layer instead of 563, whose weights are 38 MB. Waves of 4 MB take 3 % longer, of 12 MB
// 2 %. Quantised caches go in one wave: blocks of int8 use all registers, so nothing runs beside
// them, and waves of 8 MB took 12 % longer than one; int4 and k8v4 were not tried.
constexpr size_t kWaveBytes = 8 << 20;

inline int WavesOf(const DecodePass& p) {
  const AttentionArguments& a = p.attention;
  if (!a.wants_mass || IsQuantized(a.kv.k_format)) return 1;
  const int64_t slots = std::min(int64_t{p.batch.chunks} * a.kv.slots, p.batch.max_slots);
  const size_t bytes =
      slots / kWeightTile * a.kv.kv_heads * WeightFloats(kWeightTile, a.group) * sizeof(float);
  const size_t waves = std::max<size_t>((bytes + kWaveBytes - 1) / kWaveBytes, 1);
  return static_cast<int>(std::min(waves, size_t(p.batch.chunks)));
}

// Wave `number` of a pass as a pass of its own, with its share of the chunks and scratch memory.
inline DecodePass WaveOf(const DecodePass& p, int number, int waves) {
  const auto begin_of = [&](int64_t i) { return static_cast<int>(p.batch.chunks * i / waves); };
  const int begin = begin_of(number);
  DecodePass wave = p;
  wave.after_wave = number > 0;
  wave.before_wave = number < waves - 1;
  wave.batch.chunk += begin;
  wave.batch.chunks = begin_of(number + 1) - begin;
  AttentionArguments& a = wave.attention;
  const size_t heads = size_t(begin) * a.kv.kv_heads;
  a.chunk += begin;
  a.parts += heads * PartFloats(a.kv, a.group);
  a.weights += heads * WeightFloats(a.kv.slots, a.group);
  return wave;
}

}  // namespace keyline::cuda
