// The operations of a KV cache, in the order of a pass. Continues ops.h, whose rules hold.
//
// Each chunk's lane decides by its LaneRules, in device memory; the operations of one policy leave
// chunks of other policies alone. Shapes of memory: cache_memory.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"

namespace keyline::ops {

// A new sequence takes the lane: its slots are empty and score nothing, its progress is zero. Its
// rules are not touched.
void ClearLane(Stream& s, const SlotTable& table, int lane);

// Slots in order, then round the ring of slots that are not protected: the oldest token makes room.
// For chunks whose lane has policy number `policy`.
void PlaceInRing(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                 int policy);

// Slots in order, then those of lowest score (lowest slot first among equals) outside the sinks and
// the grace ring. A ranking with errors scales by the extremes of all heads; heads decide in
// ascending order, and one that has decided counts with its moves carried out.
// REQUIRES: a chunk lies wholly before or wholly after the moment the lane is full.
void PlaceByScore(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                  int policy, const ScoreRule& rule);

// Carries out the placement's moves: K, V, position, score, norm and error go together.
void MoveSlots(Stream& s, const KvMemory& kv, const SlotTable& table, const Placement& placement,
               const Batch& batch);

// q and k of every token: per-head norm where the spec has one, then RoPE. q turns in place; k and
// v go to the token's slots, in the memory's formats (rounded or quantised once, from float32),
// with its position, score 0, and norm and error where the table has them. qkv: [tokens, (heads + 2
// * kv_heads) * head_dim], q then k then v; afterwards what stands in the columns of k and v is
// unspecified.
void RotateAndWrite(Stream& s, const KvMemory& kv, const SlotTable& table,
                    const Placement& placement, TensorView qkv, const Batch& batch,
                    const AttentionSpec& spec);

// out[t] = attention of t's query heads over all slots of its lane that it sees.
// out: [tokens, heads * head_dim]. A query at p sees slot j iff 0 <= slot_pos[j] <= p and, with a
// window, slot_pos[j] > p - window; one that sees nothing gives 0.
// mass: float32 [lanes, kv_heads, slots], row c for chunk c, or null. For chunks that take mass, of
// lanes that want it: mass[c, g, j] = weight on slot j summed over the chunk's queries and averaged
// over g's query heads, for the slots in use; other rows keep what they had.
void Attention(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
               const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec);

// scores += what the mass says by the rule, for chunks of `policy` that take mass.
void AddScores(Stream& s, const SlotTable& table, const float* mass, const Batch& batch, int policy,
               const ScoreRule& rule);

// The first part of a pass for chunks of one token, of any number of layers at once: every policy's
// choice of slots, and the moves. It depends on what the pass before left alone, so it may come
// before anything else of the pass. Where the backend has a kernel for that; false: nothing was
// done, and the operations above do it. policies: of each of the layers, by policy number.
// REQUIRES: batch.max_chunk_tokens == 1; layers have the same number of KV heads.
bool PlaceDecode(Stream& s, std::span<const PlacedCache> layers, const Batch& batch,
                 std::span<const PolicyRule> policies);

// The rest of the pass of a layer, from the turn of q to the advance of the lanes, where the
// backend has kernels for that; false: nothing was done, and the operations from RotateAndWrite on
// do it. What it leaves in memory is theirs up to rounding, but for qkv, which it does not change,
// and for mass, which it keeps to itself. REQUIRES: PlaceDecode has placed the batch's tokens.
bool AttendDecode(Stream& s, TensorView out, TensorView qkv, const Batch& batch, const KvMemory& kv,
                  const SlotTable& table, const Placement& placement, const AttentionSpec& spec,
                  std::span<const PolicyRule> policies);

// The last operation of a pass: every chunk's lane has come so much further.
void AdvanceLanes(Stream& s, const SlotTable& table, const Batch& batch);

// Copies a lane's first `slots` slots to or from `packed`, in a form that all backends share: per
// KV head K's vectors, then V's: KvPackedRowBytes a vector, elements then scale and zero point of
// each block. packed: device memory, PackedLaneBytes.
size_t PackedLaneBytes(const KvMemory& kv, int slots);
void PackLane(Stream& s, std::byte* packed, const KvMemory& kv, int lane, int slots);
void UnpackLane(Stream& s, const KvMemory& kv, int lane, int slots, const std::byte* packed);

}  // namespace keyline::ops
