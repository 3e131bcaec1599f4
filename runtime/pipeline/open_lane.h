// Lanes as plans have them: a lane's policy as it travels, and rests in saved sessions, and what
// saving and opening a lane does to the caches of a rank's layers.
#pragma once

#include <memory>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/ops/batch.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/config/cache_config.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

// What opens a lane; not how prompts are cut, which the engine does: chunk_size and max_chunk.
// Pure, as are the next two; any thread.
void WritePolicy(const LanePolicy& policy, pipeline::OpenLane& open);
LanePolicy ReadPolicy(const pipeline::OpenLane& open);
SamplingParams ReadSampling(const pipeline::OpenLane& open);

// One a layer of the rank.
using LayerCaches = std::vector<std::unique_ptr<KvCache>>;

// Adds the lane's state in these layers to the result, or why there is none.
void SaveLane(Stream& s, const LayerCaches& caches, int lane, pipeline::StepResult& result);
// Opens the lane: empty, as it is, or with the state of a model of `model_layers` layers that the
// plan carries. One that cannot be restored becomes a failure in the result.
void OpenLane(Stream& s, const LayerCaches& caches, int first_layer, int model_layers,
              const pipeline::OpenLane& open, pipeline::StepResult& result);

}  // namespace keyline
