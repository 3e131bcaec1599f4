// How a whole pass of chunks of one token, whose tokens have their slots (PlaceDecode), takes two
// kernels a layer: AttendDecode turns q and k, writes k and v and attends (decode/attend.cuh);
// FinishDecode merges its parts, adds the mass to the scores and advances the lanes. Together with
// PlaceDecode they do what the operations of cache_ops.h do one by one.
#pragma once

#include "kernels/cuda/attention/decode/parts.cuh"
#include "kernels/cuda/cache/ranking.cuh"

namespace keyline::cuda {

// Grid: MergeBlock::Grid. Dynamic shared memory: MergeBytes.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) FinishDecode(const DecodePass p) {
  extern __shared__ __align__(16) float merge[];
  LetSuccessorBegin();
  const AttentionArguments& a = p.attention;
  const MergeBlock block(a);
  const AttentionTask t = TaskOf(a, block.chunk, block.kv_head);
  const int splits = Splits(a, t.used).count();
  const LaneRules rules = p.table.rules[t.chunk.lane];
  WaitForPredecessor();
  if (block.head >= 0) {
    MergeHead<T>(merge, a, t, block.chunk, block.head, splits);
    // Nobody else of this kernel reads the progress.
    if (block.head == 0 && block.kv_head == 0 && threadIdx.x == 0)
      AdvanceLane(p.table, t.chunk, rules);
    return;
  }
  const PolicyRule rule = p.policies[rules.policy];
  if (!t.mass || block.begin >= t.used || !rule.by_score) return;
  const SlotMass masses(DecodeWeights(a, block.chunk, t.kv_head), a.group, block.begin, t.used);
  const size_t first = t.slot_pos - a.slot_pos + masses.first();
  float4* const scores = reinterpret_cast<float4*>(p.table.scores + first);
  constexpr int kNext = 2;  // the thread's other four slots: 8 further on
  float4 score[2] = {};
  if (masses.there()) {
    score[0] = scores[0];
    score[1] = scores[kNext];
  }
  const float weighted = MergeLse(merge, a, t, block.chunk, splits, rule.score.value_norms);
  // Where all values are zero, no slot is worth more than another.
  const bool alike = rule.score.value_norms && !(weighted > 0);
  if (masses.there() && !alike) {
    float mass[SlotMass::kSlots];
    masses.Sum(merge, mass);
    if (rule.score.value_norms) {
#pragma unroll
      for (int i = 0; i < SlotMass::kSlots; ++i) {
        const float norm = p.table.value_norms[first + i / 4 * 8 + i % 4];
        mass[i] = __fdiv_rn(__fmul_rn(norm, mass[i]), weighted);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* const add = mass + 4 * i;
      scores[i * kNext] = make_float4(__fadd_rn(score[i].x, add[0]), __fadd_rn(score[i].y, add[1]),
                                      __fadd_rn(score[i].z, add[2]), __fadd_rn(score[i].w, add[3]));
    }
  }
  if (a.discards) masses.Discard(t.used);
}

}  // namespace keyline::cuda
