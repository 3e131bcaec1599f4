#include "runtime/engine/scheduler.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

namespace keyline {
namespace {

void WriteOpenLane(const Sequence& sequence, pipeline::OpenLane& open) {
  const LanePolicy& policy = *sequence.request().cache;
  open.set_lane(sequence.lane);
  open.set_policy(policy.policy);
  open.mutable_cache_length()->Assign(policy.cache_length.begin(), policy.cache_length.end());
  if (policy.sinks.has_value()) open.set_sinks(*policy.sinks);
  open.set_grace(policy.grace);
  open.set_keep_initial_fraction(policy.keep_initial_fraction);
  open.set_normalize_scores(policy.normalize_scores);
  open.set_protect_begin(policy.protect_begin);
  open.set_protect_end(policy.protect_end);
  open.set_max_protected_fraction(policy.max_protected_fraction);
  const SamplingParams& sampling = sequence.request().sampling;
  open.set_temperature(sampling.temperature);
  open.set_top_k(sampling.top_k);
  open.set_top_p(sampling.top_p);
  open.set_min_p(sampling.min_p);
  open.set_seed(sampling.seed);
  open.set_sequence(sampling.sequence);
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), group_size_(limits.groups, 0) {
  CHECK_GE(limits.lanes, 1);
  CHECK_GE(limits.groups, 1);
  for (int lane = limits.lanes - 1; lane >= 0; --lane) free_lanes_.push_back(lane);
}

void Scheduler::Enqueue(std::shared_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

std::shared_ptr<Sequence> Scheduler::Remove(RequestId id) {
  const auto is_it = [id](const auto& sequence) { return sequence->id() == id; };
  if (auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    std::shared_ptr<Sequence> sequence = *it;
    running_.erase(it);
    --group_size_[sequence->group];
    free_lanes_.push_back(std::exchange(sequence->lane, -1));
    return sequence;
  }
  if (auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it); it != waiting_.end()) {
    std::shared_ptr<Sequence> sequence = *it;
    waiting_.erase(it);
    return sequence;
  }
  return nullptr;
}

void Scheduler::Admit(pipeline::StepPlan& plan, std::vector<std::shared_ptr<Sequence>>* started) {
  while (!waiting_.empty() && !free_lanes_.empty()) {
    std::shared_ptr<Sequence> sequence = std::move(waiting_.front());
    waiting_.pop_front();
    sequence->lane = free_lanes_.back();
    free_lanes_.pop_back();
    sequence->group = static_cast<int>(std::min_element(group_size_.begin(), group_size_.end()) -
                                       group_size_.begin());
    ++group_size_[sequence->group];
    WriteOpenLane(*sequence, *plan.add_open());
    started->push_back(sequence);
    running_.push_back(std::move(sequence));
  }
}

std::optional<ScheduledStep> Scheduler::NextStep(std::vector<std::shared_ptr<Sequence>>* started) {
  ScheduledStep step;
  const size_t started_before = started->size();
  Admit(step.plan, started);
  pipeline::PlanBatch batch;
  int budget = limits_.max_pass_tokens;
  const auto add = [&](const std::shared_ptr<Sequence>& sequence, pipeline::PlanChunk chunk) {
    budget -= chunk.token_ids_size();
    step.by_lane[sequence->lane] = sequence;
    *batch.add_chunks() = std::move(chunk);
  };
  // The next micro-batch, in turn, that has a sequence ready to decode.
  for (int tried = 0; tried < limits_.groups && batch.chunks_size() == 0; ++tried) {
    const int group = next_group_;
    next_group_ = (next_group_ + 1) % limits_.groups;
    for (const auto& sequence : running_) {
      if (sequence->group == group && sequence->ready_to_decode()) {
        add(sequence, sequence->TakeDecode());
      }
    }
  }
  for (const auto& sequence : running_) {
    if (!sequence->prefilling() || budget <= 0) continue;
    const int tokens = sequence->NextPrefillTokens(budget);
    // A chunk that does not fit goes first in the next step that has no room problem: younger
    // prompts must not overtake it for ever, so they wait behind it.
    if (tokens == 0) break;
    add(sequence, sequence->TakePrefill(tokens));
  }
  if (batch.chunks_size() == 0) {
    CHECK_EQ(started->size(), started_before) << "an admitted sequence always has a chunk to run";
    return std::nullopt;
  }
  *step.plan.add_batches() = std::move(batch);
  return step;
}

std::vector<std::shared_ptr<Sequence>> Scheduler::All() const {
  std::vector<std::shared_ptr<Sequence>> all = running_;
  all.insert(all.end(), waiting_.begin(), waiting_.end());
  return all;
}

}  // namespace keyline
