// Where the chunks of a sequence begin and end: they fix when eviction happens and whose attention
// mass is taken, so they depend on the request's cache alone, never on the scheduler's load.
// Rules 1-3 of ARCHITECTURE.md, "The KV cache: chunk plan".
#pragma once

#include <vector>

namespace keyline {

// Lengths of the prompt's chunks. `lengths`: cache lengths of all layers; `done`: tokens already
// processed (a continued conversation has no first chunk); `boundary`: a prefix mark that must be a
// chunk boundary, or 0.
std::vector<int> PlanChunks(const std::vector<int>& lengths, int tokens, int chunk_size,
                            int done = 0, int boundary = 0);

}  // namespace keyline
