#include "runtime/engine/scheduler.h"

#include <glog/logging.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "runtime/pipeline/open_lane.h"

namespace keyline {
namespace {

void WriteOpenLane(const Sequence& sequence, pipeline::OpenLane& open) {
  open.set_lane(sequence.lane);
  WritePolicy(*sequence.request().cache, open);
  const SamplingParams& sampling = sequence.request().sampling;
  open.set_temperature(sampling.temperature);
  open.set_top_k(sampling.top_k);
  open.set_top_p(sampling.top_p);
  open.set_min_p(sampling.min_p);
  open.set_seed(sampling.seed);
  open.set_sequence(sampling.sequence);
  if (sequence.image != nullptr) {
    open.mutable_restore()->Assign(sequence.image->layers.begin(), sequence.image->layers.end());
    open.set_restore_tokens(sequence.image->tokens);
  }
}

void Add(ScheduledStep& step, pipeline::PlanBatch& batch, const std::shared_ptr<Sequence>& sequence,
         pipeline::PlanChunk chunk) {
  step.by_lane[sequence->lane] = sequence;
  *batch.add_chunks() = std::move(chunk);
}

int TokensOf(const pipeline::PlanBatch& batch) {
  int tokens = 0;
  for (const pipeline::PlanChunk& chunk : batch.chunks()) tokens += chunk.token_ids_size();
  return tokens;
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, LaneKeeper* keeper)
    : limits_(limits),
      keeper_(keeper),
      least_piece_(limits.max_pass_tokens - limits.lanes > kLeastPiece ? kLeastPiece : 1),
      group_size_(limits.groups, 0) {
  CHECK_GE(limits.lanes, 1);
  CHECK_GE(limits.groups, 1);
  for (int lane = limits.lanes - 1; lane >= 0; --lane) free_lanes_.push_back(lane);
}

void Scheduler::Enqueue(std::shared_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

std::shared_ptr<Sequence> Scheduler::Remove(RequestId id, int* kept_lane) {
  const auto is_it = [id](const auto& sequence) { return sequence->id() == id; };
  if (auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    std::shared_ptr<Sequence> sequence = *it;
    running_.erase(it);
    --group_size_[sequence->group];
    const int lane = std::exchange(sequence->lane, -1);
    if (kept_lane != nullptr) {
      *kept_lane = lane;
    } else {
      free_lanes_.push_back(lane);
    }
    return sequence;
  }
  if (auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it); it != waiting_.end()) {
    std::shared_ptr<Sequence> sequence = *it;
    waiting_.erase(it);
    if (kept_lane != nullptr) *kept_lane = std::exchange(sequence->lane, -1);
    return sequence;
  }
  return nullptr;
}

int Scheduler::TakeLane(ScheduledStep& step) {
  if (!free_lanes_.empty()) {
    const int lane = free_lanes_.back();
    free_lanes_.pop_back();
    return lane;
  }
  return keeper_ == nullptr ? -1 : keeper_->GiveUpLane(limits_.states_per_step, &step.saves);
}

void Scheduler::Start(std::shared_ptr<Sequence> sequence, pipeline::OpenLane& open) {
  sequence->group = static_cast<int>(std::min_element(group_size_.begin(), group_size_.end()) -
                                     group_size_.begin());
  ++group_size_[sequence->group];
  WriteOpenLane(*sequence, open);
  sequence->restoring = open.restore_size() > 0;
  running_.push_back(std::move(sequence));
}

void Scheduler::Admit(ScheduledStep& step, std::vector<std::shared_ptr<Sequence>>* started) {
  int restores = 0;
  bool lanes_left = true;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Sequence& sequence = **it;
    const bool has_lane = sequence.lane >= 0;  // its session's
    if (!has_lane) {
      // Oldest first, but for those whose states are on their way.
      if (!lanes_left || (keeper_ != nullptr && !keeper_->Prepare(sequence))) {
        ++it;
        continue;
      }
      const bool restore = sequence.image != nullptr;
      if (!restore || restores < limits_.states_per_step) sequence.lane = TakeLane(step);
      lanes_left = sequence.lane >= 0;
      if (!lanes_left) {
        ++it;
        continue;
      }
      restores += restore ? 1 : 0;
    }
    pipeline::OpenLane& open = *step.plan.add_open();
    open.set_keep(has_lane);
    started->push_back(*it);
    Start(std::move(*it), open);
    if (started->back()->restoring) step.by_lane[started->back()->lane] = started->back();
    it = waiting_.erase(it);
  }
}

void Scheduler::AddPrompts(ScheduledStep& step, pipeline::PlanBatch& batch, int budget) {
  const bool first_pass = step.plan.batches_size() == 0;
  for (const auto& sequence : running_) {
    if (!sequence->prefilling() || sequence->restoring || budget <= 0) continue;
    const int tokens = sequence->NextPrefillTokens(budget, least_piece_);
    // A chunk that does not fit goes first in the next step that has no room problem: younger
    // prompts must not overtake it for ever, so they wait behind it.
    if (tokens == 0) break;
    if (sequence->at_prefix_mark()) {
      if (!first_pass) break;  // lanes are saved as they are before a step
      if (keeper_ != nullptr) keeper_->AtPrefix(*sequence, limits_.states_per_step, &step.saves);
    }
    budget -= tokens;
    Add(step, batch, sequence, sequence->TakePrefill(tokens));
  }
}

std::optional<ScheduledStep> Scheduler::NextStep(std::vector<std::shared_ptr<Sequence>>* started) {
  // Ahead of one who must wait the others would decode in turn with it from then on, instead of
  // together.
  const auto waits = [](const auto& sequence) { return sequence->waits_to_decode(); };
  if (limits_.ahead && std::ranges::any_of(running_, waits)) return std::nullopt;
  ScheduledStep step;
  step.by_lane.resize(limits_.lanes);
  if (keeper_ != nullptr) keeper_->AddSaves(limits_.states_per_step, &step.saves);
  Admit(step, started);
  pipeline::PlanBatch batch;
  // The next micro-batch, in turn, that has a sequence ready to decode.
  for (int tried = 0; tried < limits_.groups && batch.chunks_size() == 0; ++tried) {
    const int group = next_group_;
    next_group_ = (next_group_ + 1) % limits_.groups;
    for (const auto& sequence : running_) {
      if (sequence->group != group) continue;
      if (sequence->ready_to_decode() || (limits_.ahead && sequence->may_decode_ahead())) {
        Add(step, batch, sequence, sequence->TakeDecode());
      }
    }
  }
  // Further passes are cut as they would be in steps of their own.
  for (int tokens = 0;;) {
    AddPrompts(step, batch, limits_.max_pass_tokens - TokensOf(batch));
    if (batch.chunks_size() == 0) break;
    tokens += TokensOf(batch);
    step.plan.add_batches()->Swap(&batch);
    batch.Clear();
    if (tokens + limits_.max_pass_tokens > limits_.sweep_tokens) break;
  }
  for (const LaneSave& save : step.saves) step.plan.add_save(save.lane);
  if (step.plan.batches_size() + step.plan.open_size() + step.plan.save_size() == 0) {
    return std::nullopt;
  }
  return step;
}

std::vector<std::shared_ptr<Sequence>> Scheduler::All() const {
  std::vector<std::shared_ptr<Sequence>> all = running_;
  all.insert(all.end(), waiting_.begin(), waiting_.end());
  return all;
}

std::vector<std::shared_ptr<Sequence>> Scheduler::Overdue(absl::Time now) const {
  std::vector<std::shared_ptr<Sequence>> overdue;
  const auto is_overdue = [now](const auto& sequence) {
    return sequence->lost || sequence->request().deadline <= now;
  };
  std::ranges::copy_if(running_, std::back_inserter(overdue), is_overdue);
  std::ranges::copy_if(waiting_, std::back_inserter(overdue), is_overdue);
  return overdue;
}

}  // namespace keyline
