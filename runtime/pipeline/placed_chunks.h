// What the caches of a stage have recorded of a batch (KvCache::RecordPlacements), as part of a
// step's result.
#pragma once

#include <memory>
#include <vector>

#include "runtime/cache/kv_cache.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

// Appends a PlacedChunk for each chunk of the batch that ran last, with the layers of `caches`, the
// first of which is layer `first_layer`. REQUIRES: nothing else was recorded since.
void AddPlacements(const std::vector<std::unique_ptr<KvCache>>& caches, int first_layer,
                   pipeline::StepResult& result);

}  // namespace keyline
