// The CPU's entries of the OpTable for KV caches (cpu_device.cc fills it in). Contracts:
// kernels/ops/cache_ops.h. Attention itself is next door, in kernels/cpu/attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"

namespace keyline::cpu {

// lane_state.cc
void ClearLane(Stream& s, const SlotTable& table, int lane);
void AdvanceLanes(Stream& s, const SlotTable& table, const Batch& batch);

// place_slots.cc
void PlaceInRing(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                 int policy);
void PlaceByScore(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                  int policy, const ScoreRule& rule);

// kv_write.cc
void MoveSlots(Stream& s, const KvMemory& kv, const SlotTable& table, const Placement& placement,
               const Batch& batch);
void RotateAndWrite(Stream& s, const KvMemory& kv, const SlotTable& table,
                    const Placement& placement, TensorView qkv, const Batch& batch,
                    const AttentionSpec& spec);
void PackLane(Stream& s, std::byte* packed, const KvMemory& kv, int lane, int slots);
void UnpackLane(Stream& s, const KvMemory& kv, int lane, int slots, const std::byte* packed);

// rotate_heads.cc: the first half of RotateAndWrite, in place for q and k.
void RotateHeads(Stream& s, TensorView qkv, const Batch& batch, const AttentionSpec& spec);

// add_scores.cc
void AddScores(Stream& s, const SlotTable& table, const float* mass, const Batch& batch, int policy,
               const ScoreRule& rule);

// ../attention/attention.cc
void Attention(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
               const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec);

}  // namespace keyline::cpu
