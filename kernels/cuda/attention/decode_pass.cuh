// A whole pass of chunks of one token in three kernels: PrepareDecode chooses the slot, moves what
// has to move, turns q and k and writes k and v; AttendDecode attends (decode/attend.cuh);
// FinishDecode merges its parts, adds the mass to the scores and advances the lanes. Between them
// they do what the operations of cache_ops.h do one by one.
#pragma once

#include "kernels/cuda/attention/decode/parts.cuh"
#include "kernels/cuda/cache/ranking.cuh"
#include "kernels/cuda/cache/write_head.cuh"

namespace keyline::cuda {

constexpr int kMostPolicies = 16;

struct DecodePass {
  AttentionArguments attention;
  Batch batch;
  SlotTable table;
  Placement placement;
  AttentionSpec spec;
  void* qkv;
  PolicyRule policies[kMostPolicies];
};

constexpr int kPrepareWarps = 8;
constexpr int kPrepareThreads = kPrepareWarps * kWarp;

// Where the token goes, and the move that goes before, from < 0: none.
struct DecodePlacement {
  int slot;
  int from = -1;
  int to = -1;
};

// By all threads of the block.
__device__ inline DecodePlacement PlaceToken(const DecodePass& p, const Chunk& chunk,
                                             const LaneRules& rules, int head) {
  DecodePlacement out;
  if (!p.policies[rules.policy].by_score) {
    out.slot = RingSlotOf(rules, chunk.first_position);
    return out;
  }
  out.slot = chunk.first_position;
  if (chunk.first_position < rules.length) return out;
  const LaneProgress progress = p.table.progress[chunk.lane];
  const int candidates = rules.length - rules.grace;
  out.slot = progress.scored != 0
                 ? static_cast<int>(static_cast<uint32_t>(
                       LowestKey(RankingOf(p.table, chunk, head, false), rules.sinks, candidates)))
                 : FirstWithoutScores(rules, 1);
  if (rules.grace > 0) {
    out.to = out.slot;
    out.from = out.slot = GraceSlot(rules, progress, 0);
  }
  return out;
}

// Grid: (kv_heads, chunks). Dynamic shared memory: [warps][head_dim] floats.
template <class T>
__global__ void __launch_bounds__(kPrepareThreads) PrepareDecode(const DecodePass p) {
  extern __shared__ float vectors[];
  LetSuccessorBegin();
  // Nothing of this pass has written what is read here, and nothing before the pass is still under
  // way (a pass begins with the copy of its batch): all but the turning of q, k and v runs beside
  // the product that makes them.
  const int head = blockIdx.x;
  const Chunk chunk = p.batch.chunk[blockIdx.y];
  DeviceCheck(chunk.tokens == 1);
  const LaneRules rules = p.table.rules[chunk.lane];
  const DecodePlacement placed = PlaceToken(p, chunk, rules, head);
  const KvMemory& kv = p.attention.kv;
  const int warp = threadIdx.x / kWarp;
  if (placed.from >= 0) {
    // The slot that it leaves is the one that is written next.
    if (warp == 0) CopyRow(HeadOf(kv.k, kv.k_format, kv, chunk.lane, head), placed.from, placed.to);
    if (warp == 1) CopyRow(HeadOf(kv.v, kv.v_format, kv, chunk.lane, head), placed.from, placed.to);
    if (threadIdx.x == 2 * kWarp) MoveEntry(p.table, chunk.lane, head, placed.from, placed.to);
    __syncthreads();
  }
  const int32_t position = p.batch.positions[chunk.first_token];
  T* const row = static_cast<T*>(p.qkv) + chunk.first_token * p.attention.qkv_stride;
  float* const x = vectors + warp * p.spec.head_dim;
  WaitForPredecessor();
  if (threadIdx.x == 0) {
    // Layers share this memory, so the layer before must be done with it.
    const int64_t at = int64_t{chunk.first_token} * kv.kv_heads + head;
    p.placement.slots[at] = placed.slot;
    if (p.placement.moved_from != nullptr) {
      p.placement.moved_from[at] = placed.from;
      p.placement.moved_to[at] = placed.to;
    }
  }
  // k and v, and the query heads of the group.
  for (int unit = warp; unit <= p.attention.group; unit += kPrepareWarps) {
    if (unit == 0) {
      WriteKv(x, row, kv, p.table, p.spec, chunk.lane, head, placed.slot, position);
    } else {
      T* q = row + int64_t{head * p.attention.group + unit - 1} * p.spec.head_dim;
      RotateQuery(x, q, p.spec, position);
    }
  }
}

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
