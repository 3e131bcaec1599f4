#include "runtime/pipeline/coordinator.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "runtime/pipeline/plan_bytes.h"
#include "runtime/pipeline/plan_facts.h"

namespace keyline {
namespace {

// Every rank reports the same chunks in the same order, each with its own layers; ranks come in
// order, so layers end up ascending.
template <class Chunks>
void MergeLayers(Chunks* from, Chunks* to) {
  if (to->empty()) {
    to->Swap(from);
    return;
  }
  for (int i = 0; i < from->size(); ++i) {
    to->Mutable(i)->mutable_layers()->MergeFrom(from->Get(i).layers());
  }
}

void Merge(pipeline::StepResult&& part, Coordinator::Result& result) {
  pipeline::StepResult& merged = result.merged;
  if (part.has_timing()) result.timings.push_back(part.timing());
  merged.mutable_tokens()->MergeFrom(part.tokens());
  for (pipeline::ScoredChunk& scored : *part.mutable_scores()) {
    *merged.add_scores() = std::move(scored);
  }
  merged.mutable_hidden()->MergeFrom(part.hidden());
  MergeLayers(part.mutable_traces(), merged.mutable_traces());
  MergeLayers(part.mutable_placements(), merged.mutable_placements());
  // As traces: the same lanes in the same order. One rank's failure is the lane's.
  for (int i = 0; i < part.saved_size(); ++i) {
    pipeline::LaneState& from = *part.mutable_saved(i);
    if (i == merged.saved_size()) {
      *merged.add_saved() = std::move(from);
      continue;
    }
    pipeline::LaneState& to = *merged.mutable_saved(i);
    for (std::string& layer : *from.mutable_layers()) *to.add_layers() = std::move(layer);
    if (to.status_code() == 0 && from.status_code() != 0) {
      to.set_status_code(from.status_code());
      to.set_status_message(from.status_message());
    }
  }
  merged.mutable_restore_failures()->MergeFrom(part.restore_failures());
}

}  // namespace

Coordinator::Coordinator(Stage& stage, Communicator& comm, int sweep_tokens)
    : stage_(&stage),
      comm_(&comm),
      sweep_tokens_(sweep_tokens),
      // Layers that stream bind a step's time, not the host.
      runs_ahead_(comm.size() == 1 && stage.spec().pipeline_depth == 1 && sweep_tokens == 0 &&
                  stage.works_on_its_own()) {}

void Coordinator::RunAhead(bool on) {
  CHECK(flights_.empty() && (comm_->size() == 1 || !on));
  runs_ahead_ = on;
}

void Coordinator::EndStep() {
  const auto flight = std::find_if(flights_.begin(), flights_.end(),
                                   [](const Flight& flight) { return flight.running; });
  flight->own = stage_->End(*comm_);
  flight->running = false;
}

absl::Status Coordinator::Launch(pipeline::StepPlan plan) {
  CHECK_LT(in_flight(), most_in_flight());
  plan.set_step(next_step_++);
  Flight flight{.step = plan.step(),
                .tokens = TokensOf(plan),
                .states = MovesStates(plan),
                .begin = absl::Now(),
                .owing = {},
                .own = {},
                .running = false};
  for (int rank = 1; rank < comm_->size(); ++rank) {
    if (Answers(plan, rank, comm_->size())) flight.owing.push_back(rank);
  }
  if (comm_->size() > 1) comm_->SendBytes(1, ToBytes(plan));
  if (runs_ahead_) {
    while (stage_->running() > 0 && !AsksTokensOnly(plan)) EndStep();
    if (absl::Status begun = stage_->Begin(plan, *comm_); !begun.ok()) return lost_ = begun;
    flight.running = true;
    flights_.push_back(std::move(flight));
    return absl::OkStatus();
  }
  absl::StatusOr<pipeline::StepResult> own = stage_->Run(plan, *comm_);
  if (!own.ok()) return lost_ = own.status();
  flight.own = *std::move(own);
  flights_.push_back(std::move(flight));
  return absl::OkStatus();
}

bool Coordinator::ResultReady() {
  CHECK(!flights_.empty());
  if (flights_.front().running) return stage_->HasEnded();
  for (int rank : flights_.front().owing) {
    if (!comm_->HasBytes(rank)) return false;
  }
  return true;
}

absl::StatusOr<Coordinator::Result> Coordinator::Collect() {
  CHECK(!flights_.empty());
  if (flights_.front().running) EndStep();
  Flight flight = std::move(flights_.front());
  flights_.pop_front();
  Result result;
  result.merged = std::move(flight.own);
  if (result.merged.has_timing()) result.timings.push_back(result.merged.timing());
  for (int rank : flight.owing) {
    absl::StatusOr<pipeline::StepResult> part = Await(rank, flight);
    if (!part.ok()) return lost_ = part.status();
    Merge(*std::move(part), result);
  }
  if (!flight.states) limit_.Took(absl::Now() - flight.begin, flight.tokens);
  comm_->state()->Doing("decide what runs next");
  return result;
}

absl::StatusOr<pipeline::StepResult> Coordinator::Await(int rank, const Flight& flight) {
  const std::string awaited = absl::StrCat("the result of step ", flight.step);
  comm_->state()->Doing(absl::StrCat("receive ", awaited, " from rank ", rank));
  ASSIGN_OR_RETURN(Bytes bytes,
                   comm_->RecvBytes(rank, limit_.For(flight.tokens, flight.states), awaited));
  pipeline::StepResult part;
  RETURN_IF_ERROR(FromBytes(bytes, part));
  if (part.step() != flight.step) {
    return absl::InternalError(absl::StrCat("rank ", rank, " answered step ", part.step(),
                                            " where step ", flight.step, " was due"));
  }
  return part;
}

void Coordinator::Shutdown() {
  if (comm_->size() == 1) return;
  pipeline::StepPlan plan;
  plan.set_step(next_step_++);
  plan.set_stop(true);
  comm_->SendBytes(1, ToBytes(plan));
}

}  // namespace keyline
