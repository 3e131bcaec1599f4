#include "runtime/pipeline/open_lane.h"

#include <algorithm>

namespace keyline {

void WritePolicy(const LanePolicy& policy, pipeline::OpenLane& open) {
  open.set_policy(policy.policy);
  open.mutable_cache_length()->Assign(policy.cache_length.begin(), policy.cache_length.end());
  if (policy.sinks.has_value()) open.set_sinks(*policy.sinks);
  open.set_grace(policy.grace);
  open.set_keep_initial_fraction(policy.keep_initial_fraction);
  open.set_normalize_scores(policy.normalize_scores);
  open.set_protect_begin(policy.protect_begin);
  open.set_protect_end(policy.protect_end);
  open.set_max_protected_fraction(policy.max_protected_fraction);
}

LanePolicy ReadPolicy(const pipeline::OpenLane& open) {
  LanePolicy policy;
  policy.policy = open.policy();
  policy.cache_length.assign(open.cache_length().begin(), open.cache_length().end());
  if (open.has_sinks()) policy.sinks = open.sinks();
  policy.grace = open.grace();
  if (open.has_keep_initial_fraction()) {
    policy.keep_initial_fraction = open.keep_initial_fraction();
  }
  policy.normalize_scores = open.normalize_scores();
  policy.protect_begin = open.protect_begin();
  policy.protect_end = open.protect_end();
  if (open.has_max_protected_fraction()) {
    policy.max_protected_fraction = open.max_protected_fraction();
  }
  return policy;
}

bool MovesStates(const pipeline::StepPlan& plan) {
  return plan.save_size() > 0 ||
         std::any_of(plan.open().begin(), plan.open().end(),
                     [](const pipeline::OpenLane& open) { return open.restore_size() > 0; });
}

}  // namespace keyline
