// A lane's policy as it travels in plans, and rests in saved sessions. Pure; any thread.
#pragma once

#include "runtime/config/cache_config.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

// What opens a lane; not how prompts are cut, which the engine does: chunk_size and max_chunk.
void WritePolicy(const LanePolicy& policy, pipeline::OpenLane& open);
LanePolicy ReadPolicy(const pipeline::OpenLane& open);

// Whether the plan saves lanes or restores them. Every rank answers such a plan.
bool MovesStates(const pipeline::StepPlan& plan);

}  // namespace keyline
