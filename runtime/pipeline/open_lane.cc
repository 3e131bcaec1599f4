#include "runtime/pipeline/open_lane.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace keyline {
namespace {

absl::Status RestoreLane(Stream& s, const LayerCaches& caches, int first_layer, int model_layers,
                         const pipeline::OpenLane& open) {
  if (open.restore_size() != model_layers) {
    return absl::FailedPreconditionError(absl::StrCat("the saved state has ", open.restore_size(),
                                                      " layers, this model ", model_layers));
  }
  const LanePolicy policy = ReadPolicy(open);
  for (size_t i = 0; i < caches.size(); ++i) {
    const int layer = first_layer + static_cast<int>(i);
    absl::Status restored = caches[i]->RestoreLane(s, open.lane(), open.restore(layer));
    if (restored.ok()) {
      restored = caches[i]->CheckLane(s, open.lane(), policy, layer, open.restore_tokens());
    }
    if (!restored.ok()) {
      return absl::Status(restored.code(),
                          absl::StrCat("layer ", layer, ": ", std::string(restored.message())));
    }
  }
  return absl::OkStatus();
}

}  // namespace

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

SamplingParams ReadSampling(const pipeline::OpenLane& open) {
  return {.temperature = open.temperature(),
          .top_k = open.top_k(),
          .top_p = open.top_p(),
          .min_p = open.min_p(),
          .seed = open.seed(),
          .sequence = open.sequence()};
}

void SaveLane(Stream& s, const LayerCaches& caches, int lane, pipeline::StepResult& result) {
  pipeline::LaneState& state = *result.add_saved();
  state.set_lane(lane);
  for (const auto& cache : caches) {
    absl::StatusOr<std::string> saved = cache->SaveLane(s, lane);
    if (!saved.ok()) {
      state.clear_layers();
      state.set_status_code(static_cast<int>(saved.status().code()));
      state.set_status_message(std::string(saved.status().message()));
      return;
    }
    *state.add_layers() = *std::move(saved);
  }
}

void OpenLane(Stream& s, const LayerCaches& caches, int first_layer, int model_layers,
              const pipeline::OpenLane& open, pipeline::StepResult& result) {
  if (open.restore_size() == 0) {
    if (open.keep()) return;
    const LanePolicy policy = ReadPolicy(open);
    for (size_t i = 0; i < caches.size(); ++i) {
      caches[i]->OpenLane(s, open.lane(), policy, first_layer + static_cast<int>(i));
    }
    return;
  }
  const absl::Status restored = RestoreLane(s, caches, first_layer, model_layers, open);
  if (restored.ok()) return;
  pipeline::RestoreFailure& failure = *result.add_restore_failures();
  failure.set_lane(open.lane());
  failure.set_status_code(static_cast<int>(restored.code()));
  failure.set_status_message(std::string(restored.message()));
}

}  // namespace keyline
