#include "runtime/pipeline/plan_facts.h"

#include <algorithm>

#include "runtime/pipeline/pipeline_spec.h"

namespace keyline {

bool MovesStates(const pipeline::StepPlan& plan) {
  return plan.save_size() > 0 ||
         std::any_of(plan.open().begin(), plan.open().end(),
                     [](const pipeline::OpenLane& open) { return open.restore_size() > 0; });
}

int TokensOf(const pipeline::StepPlan& plan) {
  int tokens = 0;
  for (const pipeline::PlanBatch& batch : plan.batches()) {
    for (const pipeline::PlanChunk& chunk : batch.chunks()) tokens += chunk.token_ids_size();
  }
  return tokens;
}

bool Answers(const pipeline::StepPlan& plan, int rank, int ranks) {
  if (plan.stop()) return false;
  if (rank == ranks - 1 || plan.want_timing() || plan.want_placements()) return true;
  if (MovesStates(plan)) return true;
  for (const pipeline::PlanBatch& batch : plan.batches()) {
    for (const pipeline::PlanChunk& chunk : batch.chunks()) {
      if (chunk.trace() || chunk.hidden_ends()) return true;
    }
  }
  return false;
}

bool AsksTokensOnly(const pipeline::StepPlan& plan) {
  if (plan.batches_size() != 1 || plan.want_placements() || MovesStates(plan)) return false;
  int rows = 0;
  for (const pipeline::PlanChunk& chunk : plan.batches(0).chunks()) {
    const bool sampled = chunk.output() == pipeline::OUTPUT_SAMPLE;
    if (!sampled && chunk.output() != pipeline::OUTPUT_NONE) return false;
    if (chunk.trace() || chunk.top_logprobs() > 0) return false;
    if (sampled) ++rows;
  }
  return rows <= kLogitRows;
}

}  // namespace keyline
