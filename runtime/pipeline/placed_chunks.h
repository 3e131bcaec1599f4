// What the caches of a stage did with a batch, as part of a step's result: what they have recorded
// of it (KvCache::RecordPlacements), and what they keep afterwards.
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

// Appends a trace, of no layer yet, for each chunk of the batch that is to be traced.
void BeginTraces(const pipeline::PlanBatch& plan, pipeline::StepResult& result);

// Appends `layer`, what `cache` keeps of the lanes of traced chunks, to their traces, which begin
// at result.traces(first_trace). Waits for the stream.
void TraceLayer(Stream& s, const KvCache& cache, int layer, const pipeline::PlanBatch& plan,
                int first_trace, pipeline::StepResult& result);

}  // namespace keyline
