#include <algorithm>

#include "kernels/cpu/cache/cache_ops_cpu.h"

namespace keyline::cpu {

void ClearLane(Stream& /*s*/, const SlotTable& table, int lane) {
  const int64_t count = int64_t{table.kv_heads} * table.slots;
  std::fill_n(table.slot_pos + lane * count, count, -1);
  for (float* values : {table.scores, table.value_norms, table.errors}) {
    if (values != nullptr) std::fill_n(values + lane * count, count, 0.0f);
  }
  table.progress[lane] = {};
}

void AdvanceLanes(Stream& /*s*/, const SlotTable& table, const Batch& batch) {
  for (int c = 0; c < batch.chunks; ++c) {
    const Chunk& chunk = batch.chunk[c];
    const LaneRules& rules = table.rules[chunk.lane];
    LaneProgress& progress = table.progress[chunk.lane];
    progress.tokens = chunk.first_position + chunk.tokens;
    if (chunk.chunk_position == 0) progress.first_chunk = chunk.chunk_tokens;
    if (chunk.takes_mass && rules.wants_mass) progress.scored = 1;
    // A chunk larger than the ring replaces all of it, oldest first, and so ends where it began.
    if (rules.grace > 0 && chunk.first_position >= rules.length && chunk.tokens <= rules.grace) {
      progress.ring_next = (progress.ring_next + chunk.tokens) % rules.grace;
    }
  }
}

}  // namespace keyline::cpu
