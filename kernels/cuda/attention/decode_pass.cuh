// How a whole pass of chunks of one token, whose tokens have their slots (PlaceDecode), takes two
// kernels a layer, and a third beside what follows: AttendDecode turns q and k, writes k and v and
// attends (decode/attend.cuh); FinishDecode merges its parts and advances the lanes; TakeMass
// (decode/take_mass.cu) adds the mass to the scores, which nobody reads before the next pass.
// Together with PlaceDecode they do what the operations of cache_ops.h do one by one.
#pragma once

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

}  // namespace keyline::cuda
