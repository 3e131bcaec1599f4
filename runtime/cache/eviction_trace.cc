#include "runtime/cache/eviction_trace.h"

#include <algorithm>

namespace keyline {
namespace {

// Rows of an array [tokens, kv_heads] on the device; none where there is no array.
std::vector<int32_t> ReadRows(Stream& s, const int32_t* rows, size_t count) {
  if (rows == nullptr) return {};
  std::vector<int32_t> host(count);
  s.CopyAsync(host.data(), rows, count * sizeof(int32_t));
  s.Synchronize();
  return host;
}

// What is overwritten by a move or a write is lost, unless it was moved away first.
std::vector<std::vector<int32_t>> Lost(const ChunkPlacement& chunk,
                                       const SlotPositionsOfLane& before) {
  std::vector<std::vector<int32_t>> lost(before.size());
  for (size_t g = 0; g < before.size(); ++g) {
    std::vector<int32_t> left = before[g];
    std::vector<int32_t> overwritten;
    for (const SlotMove& move : chunk.moves) {
      if (move.head != static_cast<int32_t>(g)) continue;
      left[move.from] = -1;
      overwritten.push_back(move.to);
    }
    for (const std::vector<int32_t>& token : chunk.slots) overwritten.push_back(token[g]);
    for (int32_t slot : overwritten) {
      if (left[slot] >= 0) lost[g].push_back(left[slot]);
    }
    std::sort(lost[g].begin(), lost[g].end());
  }
  return lost;
}

}  // namespace

std::vector<Chunk> ReadChunks(Stream& s, const Batch& batch) {
  std::vector<Chunk> chunks(batch.chunks);
  s.CopyAsync(chunks.data(), batch.chunk, chunks.size() * sizeof(Chunk));
  s.Synchronize();
  return chunks;
}

void ReadPlacement(Stream& s, const Placement& placement, const Batch& batch,
                   const std::vector<SlotPositionsOfLane>& before, int kv_heads,
                   std::vector<ChunkPlacement>& out) {
  const std::vector<Chunk> chunks = ReadChunks(s, batch);
  const size_t count = size_t(batch.tokens) * kv_heads;
  const std::vector<int32_t> slots = ReadRows(s, placement.slots, count);
  const std::vector<int32_t> from = ReadRows(s, placement.moved_from, count);
  const std::vector<int32_t> to = ReadRows(s, placement.moved_to, count);
  for (size_t c = 0; c < chunks.size(); ++c) {
    const Chunk& chunk = chunks[c];
    ChunkPlacement& record = out.emplace_back();
    record.lane = chunk.lane;
    record.first_position = chunk.first_position;
    record.tokens = chunk.tokens;
    for (int t = chunk.first_token; t < chunk.first_token + chunk.tokens; ++t) {
      std::vector<int32_t>& row = record.slots.emplace_back();
      for (int g = 0; g < kv_heads; ++g) {
        const size_t i = size_t(t) * kv_heads + g;
        row.push_back(slots[i]);
        if (!from.empty() && from[i] >= 0) record.moves.push_back({g, from[i], to[i]});
      }
    }
    record.evicted = Lost(record, before[c]);
  }
}

}  // namespace keyline
