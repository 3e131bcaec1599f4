// Where the chunks of a sequence begin and end: they fix when eviction happens and whose attention
// mass is taken, so they depend on the request's cache alone, never on the scheduler's load.
// Rules 1-3 of ARCHITECTURE.md, "The KV cache: chunk plan". Pure functions; any thread.
#pragma once

#include <vector>

#include "runtime/config/cache_config.h"

namespace keyline {

// A chunk may exceed the chunk size by this much, to end where a layer's cache becomes full.
constexpr int kChunkOvershoot = 4;

// The chunk size that a policy's chunk_size and max_chunk come to, so that no chunk after the first
// exceeds max_chunk.
int ChunkSize(const LanePolicy& policy);

// Lengths of the prompt's chunks: `tokens` in all, of which `done` are processed already (a
// continued conversation has no first chunk). `lengths`: cache lengths of all layers. `boundary`: a
// prefix mark that must be a chunk boundary, or 0; the plan is the same whether the prefix was
// found processed (done == boundary) or not.
std::vector<int> PlanChunks(const std::vector<int>& lengths, int tokens, int chunk_size,
                            int done = 0, int boundary = 0);

}  // namespace keyline
