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
  const int splits = SplitsOfSlots(t.used);
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
  const int begin = (head - a.group) * kMassSlots;
  if (!t.mass || begin >= t.used || !rule.by_score) return;
  const float weighted = MergeLse(merge, a, t, blockIdx.z, splits);
  // All values are zero, and no slot is worth more than another.
  if (rule.score.value_norms && !(weighted > 0)) return;
  const size_t first = t.slot_pos - a.slot_pos;
  ForEachMass(a, DecodeLogits(a, blockIdx.z, t.kv_head), merge, begin, t.used,
              [&](int slot, float mass) {
                if (rule.score.value_norms) {
                  mass = __fdiv_rn(__fmul_rn(p.table.value_norms[first + slot], mass), weighted);
                }
                p.table.scores[first + slot] = __fadd_rn(p.table.scores[first + slot], mass);
              });
}

}  // namespace keyline::cuda
