#include "launch/bench/pipeline_simulation.h"

#include <glog/logging.h>

#include <algorithm>

namespace keyline::bench {

PipelineSimulation::PipelineSimulation(const PipelineSetting& setting)
    : setting_(setting), free_(setting.ranks, 0.0), busy_(setting.ranks, 0.0) {
  CHECK_GE(setting.ranks, 1);
  CHECK_GE(setting.depth, 1);
}

double PipelineSimulation::Launch(const SimulatedStep& step) {
  const int index = static_cast<int>(answered_.size());
  const int ranks = setting_.ranks;
  CHECK_EQ(static_cast<int>(step.stage.size()), ranks);
  CHECK_LT(step.after, index);
  double ready = host_free_;
  if (step.after >= 0) ready = std::max(ready, answered_[step.after]);
  if (index >= setting_.depth) ready = std::max(ready, left_flight_[index - setting_.depth]);
  // Where the host computes, what it does between steps is on the rank's own time.
  if (!setting_.devices_run_alone) ready = std::max(ready, free_[0]);
  host_free_ = ready + setting_.turnaround;

  double begin = std::max(host_free_, free_[0]);
  for (int r = 0; r < ranks; ++r) {
    const double end = begin + step.stage[r];
    busy_[r] += step.stage[r];
    free_[r] = end;
    if (r + 1 == ranks) break;
    const HopTime& hop = step.hop;
    const double next_free = free_[r + 1];
    if (hop.together) {
      begin = std::max(end, next_free) + hop.one_way;
      free_[r] = begin;
      continue;
    }
    free_[r] = end + hop.send;
    // Whoever comes last decides: the message, the receiver's host, or its device.
    const bool ahead = setting_.last_receives_ahead && r + 2 == ranks;
    begin = std::max(end + hop.one_way, (ahead ? receiver_free_ : next_free) + hop.receive);
    if (ahead) {
      begin = std::max(begin, next_free + hop.receive_device);
      receiver_free_ = step.samples ? begin + step.stage[r + 1] : begin;
    }
  }
  if (!setting_.devices_run_alone) host_free_ = std::max(host_free_, free_[0]);
  const double way_back = ranks > 1 ? setting_.answer : 0.0;
  answered_.push_back(free_[ranks - 1] + way_back);
  double left = answered_.back();
  if (!step.samples && setting_.devices_run_alone) {
    left = host_free_;
  } else if (!step.samples && setting_.last_receives_ahead) {
    left = begin + way_back;
  }
  left_flight_.push_back(left);
  return answered_.back();
}

double DecodeRate(const PipelineSetting& setting, int groups, int batch, SimulatedStep step) {
  CHECK_GE(groups, 1);
  // What the start leaves behind is gone after a few rounds; then every round is like the last.
  constexpr int kRounds = 64;
  PipelineSimulation simulation(setting);
  for (int i = 0; i < 2 * kRounds * groups; ++i) {
    step.after = i < groups ? -1 : i - groups;
    simulation.Launch(step);
  }
  const int last = 2 * kRounds * groups - 1;
  const double seconds = simulation.answered(last) - simulation.answered(last - kRounds * groups);
  return static_cast<double>(kRounds) * groups * batch / seconds;
}

double PromptSeconds(const PipelineSetting& setting, const std::vector<SimulatedStep>& pieces) {
  PipelineSimulation simulation(setting);
  double end = 0;
  for (const SimulatedStep& piece : pieces) end = simulation.Launch(piece);
  return end;
}

double IdealPromptSeconds(PipelineSetting setting, const std::vector<SimulatedStep>& pieces) {
  setting.depth = std::max(1, static_cast<int>(pieces.size()));
  setting.turnaround = 0;
  setting.answer = 0;
  return PromptSeconds(setting, pieces);
}

}  // namespace keyline::bench
