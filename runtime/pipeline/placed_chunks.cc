#include "runtime/pipeline/placed_chunks.h"

namespace keyline {
namespace {

void AddLayer(const ChunkPlacement& from, int layer, pipeline::PlacedChunk& to) {
  pipeline::LayerPlacement& out = *to.add_layers();
  out.set_layer(layer);
  for (const std::vector<int32_t>& evicted : from.evicted) {
    out.add_heads()->mutable_evicted()->Add(evicted.begin(), evicted.end());
  }
  for (const SlotMove& move : from.moves) {
    out.mutable_heads(move.head)->add_moved_from(move.from);
    out.mutable_heads(move.head)->add_moved_to(move.to);
  }
  for (const std::vector<int32_t>& token : from.slots) {
    for (size_t g = 0; g < token.size(); ++g) {
      out.mutable_heads(static_cast<int>(g))->add_slots(token[g]);
    }
  }
}

}  // namespace

void AddPlacements(const std::vector<std::unique_ptr<KvCache>>& caches, int first_layer,
                   pipeline::StepResult& result) {
  const int first_chunk = result.placements_size();
  for (size_t i = 0; i < caches.size(); ++i) {
    const std::vector<ChunkPlacement> chunks = caches[i]->TakePlacements();
    for (size_t c = 0; c < chunks.size(); ++c) {
      const int at = first_chunk + static_cast<int>(c);
      if (at == result.placements_size()) {
        pipeline::PlacedChunk& chunk = *result.add_placements();
        chunk.set_lane(chunks[c].lane);
        chunk.set_first_position(chunks[c].first_position);
        chunk.set_tokens(chunks[c].tokens);
      }
      AddLayer(chunks[c], first_layer + static_cast<int>(i), *result.mutable_placements(at));
    }
  }
}

void BeginTraces(const pipeline::PlanBatch& plan, pipeline::StepResult& result) {
  for (const pipeline::PlanChunk& chunk : plan.chunks()) {
    if (!chunk.trace()) continue;
    pipeline::ChunkTraceResult& trace = *result.add_traces();
    trace.set_lane(chunk.lane());
    trace.set_start(chunk.first_position());
    trace.set_tokens(chunk.token_ids_size());
  }
}

void TraceLayer(Stream& s, const KvCache& cache, int layer, const pipeline::PlanBatch& plan,
                int first_trace, pipeline::StepResult& result) {
  int at = first_trace;
  for (const pipeline::PlanChunk& chunk : plan.chunks()) {
    if (!chunk.trace()) continue;
    pipeline::LayerTrace& out = *result.mutable_traces(at++)->add_layers();
    out.set_layer(layer);
    for (const std::vector<int32_t>& kept : cache.KeptPositions(s, chunk.lane())) {
      out.add_heads()->mutable_positions()->Add(kept.begin(), kept.end());
    }
  }
}

}  // namespace keyline
