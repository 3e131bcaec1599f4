#include <glog/logging.h>

#include <cmath>
#include <vector>

#include "kernels/cpu/cache/cache_ops_cpu.h"
#include "kernels/cpu/cache/kv_layout.h"
#include "kernels/cpu/cpu_device.h"

namespace keyline::cpu {
namespace {

constexpr int64_t kSerialVectors = 32;  // below, a loop is not worth its barrier

// Calls body(i) for i in [0, count), on all threads if that pays.
template <class Body>
void ForEach(Stream& s, int64_t count, const Body& body) {
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  };
  if (count <= kSerialVectors) {
    range(0, count);
  } else {
    AsCpu(s).pool().ParallelFor(count, range);
  }
}

// K and V of one (lane, KV head).
struct HeadMemory {
  HeadMemory(const KvMemory& kv, int lane, int head)
      : k_layout(kv.k_format, kv.head_dim), v_layout(kv.v_format, kv.head_dim) {
    const size_t first_slot = (size_t(lane) * kv.kv_heads + head) * kv.slots;
    k = kv.k + first_slot * k_layout.row_bytes;
    v = kv.v + first_slot * v_layout.row_bytes;
  }

  RowLayout k_layout;
  RowLayout v_layout;
  std::byte* k;
  std::byte* v;
};

std::byte* PackedRow(const RowLayout& layout) {
  static thread_local std::vector<std::byte> row;
  row.resize(layout.packed_bytes());
  return row.data();
}

float Norm(const float* x, int n) {
  double squares = 0;
  for (int i = 0; i < n; ++i) squares += double{x[i]} * x[i];
  return static_cast<float>(std::sqrt(squares));
}

// k and v of every token to its slots.
void WriteSlots(Stream& s, const KvMemory& kv, const SlotTable& table, const Placement& placement,
                TensorView qkv, const Batch& batch) {
  const int dim = kv.head_dim;
  const int64_t k_column = qkv.cols() - int64_t{2} * kv.kv_heads * dim;
  const int64_t v_column = qkv.cols() - int64_t{kv.kv_heads} * dim;
  ForEach(s, int64_t{batch.tokens} * kv.kv_heads, [&](int64_t i) {
    const int64_t token = i / kv.kv_heads;
    const int head = static_cast<int>(i % kv.kv_heads);
    const int lane = batch.chunk[batch.token_chunk[token]].lane;
    const int slot = placement.slots[i];
    CHECK(slot >= 0 && slot < table.rules[lane].length)
        << "slot " << slot << " of " << table.rules[lane].length << ", lane " << lane;
    const HeadMemory memory(kv, lane, head);
    const float* k = qkv.row<float>(token) + k_column + int64_t{head} * dim;
    const float* v = qkv.row<float>(token) + v_column + int64_t{head} * dim;
    std::byte* row = PackedRow(memory.k_layout);
    const float k_lost = EncodeRow(memory.k_layout, k, row);
    PutK(memory.k_layout, memory.k, slot, row);
    row = PackedRow(memory.v_layout);
    const float v_lost = EncodeRow(memory.v_layout, v, row);
    PutV(memory.v_layout, memory.v, slot, row);
    const int64_t at = (int64_t{lane} * table.kv_heads + head) * table.slots + slot;
    table.slot_pos[at] = batch.positions[token];
    if (table.scores != nullptr) table.scores[at] = 0;
    if (table.value_norms != nullptr) table.value_norms[at] = Norm(v, dim);
    if (table.errors != nullptr) table.errors[at] = k_lost + v_lost;
  });
}

}  // namespace

void MoveSlots(Stream& s, const KvMemory& kv, const SlotTable& table, const Placement& placement,
               const Batch& batch) {
  // From and to never overlap within a (lane, head), so the order of the moves is free.
  ForEach(s, int64_t{batch.tokens} * kv.kv_heads, [&](int64_t i) {
    const int from = placement.moved_from[i];
    if (from < 0) return;
    const int to = placement.moved_to[i];
    const int lane = batch.chunk[batch.token_chunk[i / kv.kv_heads]].lane;
    const int head = static_cast<int>(i % kv.kv_heads);
    const HeadMemory memory(kv, lane, head);
    std::byte* row = PackedRow(memory.k_layout);
    GetK(memory.k_layout, memory.k, from, row);
    PutK(memory.k_layout, memory.k, to, row);
    row = PackedRow(memory.v_layout);
    GetV(memory.v_layout, memory.v, from, row);
    PutV(memory.v_layout, memory.v, to, row);
    const int64_t first = (int64_t{lane} * table.kv_heads + head) * table.slots;
    table.slot_pos[first + to] = table.slot_pos[first + from];
    for (float* values : {table.scores, table.value_norms, table.errors}) {
      if (values != nullptr) values[first + to] = values[first + from];
    }
  });
}

void RotateAndWrite(Stream& s, const KvMemory& kv, const SlotTable& table,
                    const Placement& placement, TensorView qkv, const Batch& batch,
                    const AttentionSpec& spec) {
  RotateHeads(s, qkv, batch, spec);
  WriteSlots(s, kv, table, placement, qkv, batch);
}

void PackLane(Stream& s, std::byte* packed, const KvMemory& kv, int lane, int slots) {
  for (int head = 0; head < kv.kv_heads; ++head) {
    const HeadMemory memory(kv, lane, head);
    const size_t k_bytes = memory.k_layout.packed_bytes();
    const size_t v_bytes = memory.v_layout.packed_bytes();
    ForEach(s, slots, [&](int64_t i) {
      const int slot = static_cast<int>(i);
      GetK(memory.k_layout, memory.k, slot, packed + i * k_bytes);
      GetV(memory.v_layout, memory.v, slot, packed + slots * k_bytes + i * v_bytes);
    });
    packed += slots * (k_bytes + v_bytes);
  }
}

void UnpackLane(Stream& s, const KvMemory& kv, int lane, int slots, const std::byte* packed) {
  for (int head = 0; head < kv.kv_heads; ++head) {
    const HeadMemory memory(kv, lane, head);
    const size_t k_bytes = memory.k_layout.packed_bytes();
    const size_t v_bytes = memory.v_layout.packed_bytes();
    ForEach(s, slots, [&](int64_t i) {
      const int slot = static_cast<int>(i);
      PutK(memory.k_layout, memory.k, slot, packed + i * k_bytes);
      PutV(memory.v_layout, memory.v, slot, packed + slots * k_bytes + i * v_bytes);
    });
    packed += slots * (k_bytes + v_bytes);
  }
}

}  // namespace keyline::cpu
