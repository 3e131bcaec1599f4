#include "kernels/ops/cache_ops.h"

#include <glog/logging.h>

#include "kernels/ops/op_table.h"

namespace keyline::ops {
namespace {

const OpTable& Table(Stream& s) { return s.device().ops(); }

void CheckRows(const char* what, const TensorView& t, int64_t rows, int64_t cols) {
  CHECK_EQ(t.rank, 2) << what;
  CHECK_EQ(t.shape[0], rows) << what << " rows";
  CHECK_EQ(t.shape[1], cols) << what << " columns";
  CHECK_EQ(t.strides[1], 1) << what << " must have contiguous rows";
}

void CheckBatch(const Batch& batch, const SlotTable& table) {
  CHECK_GT(batch.tokens, 0);
  CHECK(batch.chunks > 0 && batch.chunks <= table.lanes)
      << batch.chunks << " chunks for " << table.lanes << " lanes";
}

void CheckSameShape(const KvMemory& kv, const SlotTable& table) {
  CHECK_EQ(kv.lanes, table.lanes);
  CHECK_EQ(kv.kv_heads, table.kv_heads);
  CHECK_EQ(kv.slots, table.slots);
  CHECK_EQ(kv.slots % kSlotPadding, 0);
}

void CheckAttention(const TensorView& out, const TensorView& qkv, const Batch& batch,
                    const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec) {
  CheckBatch(batch, table);
  CheckSameShape(kv, table);
  CHECK_EQ(spec.kv_heads, kv.kv_heads);
  CHECK_EQ(spec.head_dim, kv.head_dim);
  CHECK(spec.heads >= spec.kv_heads && spec.heads % spec.kv_heads == 0)
      << spec.heads << " query heads for " << spec.kv_heads << " KV heads";
  CheckRows("qkv", qkv, batch.tokens, int64_t{spec.heads + 2 * spec.kv_heads} * spec.head_dim);
  CheckRows("out", out, batch.tokens, int64_t{spec.heads} * spec.head_dim);
}

}  // namespace

void ClearLane(Stream& s, const SlotTable& table, int lane) {
  CHECK(lane >= 0 && lane < table.lanes) << "lane " << lane << " of " << table.lanes;
  Table(s).clear_lane(s, table, lane);
}

void PlaceInRing(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                 int policy) {
  CheckBatch(batch, table);
  Table(s).place_in_ring(s, out, batch, table, policy);
}

void PlaceByScore(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
                  int policy, const ScoreRule& rule) {
  CheckBatch(batch, table);
  CHECK(table.scores != nullptr && out.moved_from != nullptr && out.moved_to != nullptr);
  CHECK(!rule.errors || table.errors != nullptr);
  Table(s).place_by_score(s, out, batch, table, policy, rule);
}

void MoveSlots(Stream& s, const KvMemory& kv, const SlotTable& table, const Placement& placement,
               const Batch& batch) {
  CheckBatch(batch, table);
  CheckSameShape(kv, table);
  CHECK(placement.moved_from != nullptr && placement.moved_to != nullptr);
  Table(s).move_slots(s, kv, table, placement, batch);
}

void RotateAndWrite(Stream& s, const KvMemory& kv, const SlotTable& table,
                    const Placement& placement, TensorView qkv, const Batch& batch,
                    const AttentionSpec& spec) {
  CheckBatch(batch, table);
  CheckSameShape(kv, table);
  CHECK_EQ(spec.kv_heads, kv.kv_heads);
  CHECK_EQ(spec.head_dim, kv.head_dim);
  CheckRows("qkv", qkv, batch.tokens, int64_t{spec.heads + 2 * spec.kv_heads} * spec.head_dim);
  CHECK_LE(spec.rope.rotary_dim, spec.head_dim);
  CHECK_EQ(spec.rope.rotary_dim % 2, 0);
  CHECK(placement.slots != nullptr);
  Table(s).rotate_and_write(s, kv, table, placement, qkv, batch, spec);
}

void Attention(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
               const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec) {
  CheckAttention(out, qkv, batch, kv, table, spec);
  Table(s).attention(s, out, mass, qkv, batch, kv, table, spec);
}

bool PlaceDecode(Stream& s, std::span<const PlacedCache> layers, const Batch& batch,
                 std::span<const PolicyRule> policies) {
  if (Table(s).place_decode == nullptr) return false;
  CHECK_EQ(batch.max_chunk_tokens, 1);
  for (const PlacedCache& layer : layers) {
    CheckBatch(batch, layer.table);
    CheckSameShape(layer.kv, layer.table);
    CHECK_EQ(layer.kv.kv_heads, layers[0].kv.kv_heads);
    CHECK(layer.placement.slots != nullptr);
  }
  return Table(s).place_decode(s, layers, batch, policies);
}

bool AttendDecode(Stream& s, TensorView out, TensorView qkv, const Batch& batch, const KvMemory& kv,
                  const SlotTable& table, const Placement& placement, const AttentionSpec& spec,
                  std::span<const PolicyRule> policies) {
  if (Table(s).attend_decode == nullptr) return false;
  CHECK_EQ(batch.max_chunk_tokens, 1);
  CheckAttention(out, qkv, batch, kv, table, spec);
  return Table(s).attend_decode(s, out, qkv, batch, kv, table, placement, spec, policies);
}

void AddScores(Stream& s, const SlotTable& table, const float* mass, const Batch& batch, int policy,
               const ScoreRule& rule) {
  CheckBatch(batch, table);
  CHECK(table.scores != nullptr && mass != nullptr);
  CHECK(!rule.value_norms || table.value_norms != nullptr);
  Table(s).add_scores(s, table, mass, batch, policy, rule);
}

void AdvanceLanes(Stream& s, const SlotTable& table, const Batch& batch) {
  CheckBatch(batch, table);
  Table(s).advance_lanes(s, table, batch);
}

size_t PackedLaneBytes(const KvMemory& kv, int slots) {
  return size_t(kv.kv_heads) * slots *
         (KvPackedRowBytes(kv.k_format, kv.head_dim) + KvPackedRowBytes(kv.v_format, kv.head_dim));
}

void PackLane(Stream& s, std::byte* packed, const KvMemory& kv, int lane, int slots) {
  CHECK(lane >= 0 && lane < kv.lanes) << "lane " << lane << " of " << kv.lanes;
  CHECK(slots >= 0 && slots <= kv.slots) << slots << " slots of " << kv.slots;
  Table(s).pack_lane(s, packed, kv, lane, slots);
}

void UnpackLane(Stream& s, const KvMemory& kv, int lane, int slots, const std::byte* packed) {
  CHECK(lane >= 0 && lane < kv.lanes) << "lane " << lane << " of " << kv.lanes;
  CHECK(slots >= 0 && slots <= kv.slots) << slots << " slots of " << kv.slots;
  Table(s).unpack_lane(s, kv, lane, slots, packed);
}

}  // namespace keyline::ops
