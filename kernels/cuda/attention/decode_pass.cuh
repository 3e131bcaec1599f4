// How a whole pass of chunks of one token, whose tokens have their slots (PlaceDecode), takes two
// kernels a layer: AttendDecode turns q and k, writes k and v and attends (decode/attend.cuh);
// FinishDecode merges its parts, adds the mass to the scores and advances the lanes. Together with
// PlaceDecode they do what the operations of cache_ops.h do one by one.
#pragma once

#include "kernels/cuda/attention/decode/parts.cuh"
#include "kernels/cuda/cache/ranking.cuh"

namespace keyline::cuda {

// Grid: MergeGrid. Dynamic shared memory: MergeBytes.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) FinishDecode(const DecodePass p) {
  extern __shared__ __align__(16) float merge[];
  LetSuccessorBegin();
  const AttentionArguments& a = p.attention;
  const AttentionTask t = TaskOf(a, blockIdx.z, blockIdx.y);
  const int splits = Splits(a, t.used).count();
  const LaneRules rules = p.table.rules[t.chunk.lane];
  WaitForPredecessor();
  const int head = blockIdx.x;
  if (head < a.group) {
    MergeHead<T>(merge, a, t, blockIdx.z, head, splits);
    // Nobody else of this kernel reads the progress.
    if (head == 0 && blockIdx.y == 0 && threadIdx.x == 0) AdvanceLane(p.table, t.chunk, rules);
    return;
  }
  const PolicyRule rule = p.policies[rules.policy];
  const int begin = (head - a.group) * SlotMass::kBlockSlots;
  if (!t.mass || begin >= t.used || !rule.by_score) return;
  const SlotMass masses(DecodeWeights(a, blockIdx.z, t.kv_head), a.group, begin, t.used);
  const size_t first = t.slot_pos - a.slot_pos + masses.first();
  float4* const scores = reinterpret_cast<float4*>(p.table.scores + first);
  constexpr int kNext = 2;  // the thread's other four slots: 8 further on
  float4 score[2] = {};
  if (masses.there()) {
    score[0] = scores[0];
    score[1] = scores[kNext];
  }
  const float weighted = MergeLse(merge, a, t, blockIdx.z, splits, rule.score.value_norms);
  // All values are zero, and no slot is worth more than another.
  if (!masses.there() || (rule.score.value_norms && !(weighted > 0))) return;
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

}  // namespace keyline::cuda
