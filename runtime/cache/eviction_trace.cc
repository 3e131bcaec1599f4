#include "runtime/cache/eviction_trace.h"

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

}  // namespace

void ReadPlacement(Stream& s, const Placement& placement, const Batch& batch, int kv_heads,
                   std::vector<ChunkPlacement>& out) {
  std::vector<Chunk> chunks(batch.chunks);
  s.CopyAsync(chunks.data(), batch.chunk, chunks.size() * sizeof(Chunk));
  const size_t count = size_t(batch.tokens) * kv_heads;
  const std::vector<int32_t> slots = ReadRows(s, placement.slots, count);
  const std::vector<int32_t> from = ReadRows(s, placement.moved_from, count);
  const std::vector<int32_t> to = ReadRows(s, placement.moved_to, count);
  for (const Chunk& chunk : chunks) {
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
  }
}

}  // namespace keyline
