// PipelineSimulation: when steps pass through a pipeline, given how long each takes on each rank
// and on its way between them. Pure arithmetic, no clock; launch/bench/stage_times measures what it
// is fed with.
//
// It does what the runtime does (runtime/pipeline/{coordinator,worker,stage}.cc,
// runtime/transport): a rank runs steps in the order of their launch, one at a time; a hop takes
// both ranks' time, each its own, in the order of their stages, so it is not hidden behind them;
// answers return as bytes that wait for nobody; at most `depth` steps are in flight; a sequence's
// next token needs the answer of its last. Thread: one. Times are seconds from the first launch
// that was possible.
#pragma once

#include <vector>

namespace keyline::bench {

// A hidden state from a rank to the next.
struct HopTime {
  double one_way = 0;  // from the end of the sender's stage until a receiver that waits has it
  // The receiver must be there before the transfer begins, and both are in it to the end (NCCL's
  // messages on streams). Else the message waits for the receiver in host memory, and each of the
  // two is occupied for a time of its own:
  bool together = false;
  double send = 0;     // from the end of the sender's stage until it can do other work
  double receive = 0;  // from when the receiver turns to a message that waits until it has it
  // Of `receive`, what the receiver's device has to be free for; the rest its host does alone.
  double receive_device = 0;
};

struct PipelineSetting {
  int ranks = 1;
  int depth = 1;          // most steps in flight
  double turnaround = 0;  // rank 0's host: from an answer to the launch of a step
  double answer = 0;      // from the last rank to rank 0; nothing where they are one
  // Devices work on their own (GPUs): rank 0's host launches while its stage runs, and a step that
  // samples nothing is answered as soon as it is enqueued.
  bool devices_run_alone = false;
  // Devices work on their own, but messages go through host memory: the last rank's host takes the
  // next one in while its device works, unless it waits for the token of a step; a step that
  // samples nothing is answered as soon as that host has enqueued it. (The others wait for what
  // they send.)
  bool last_receives_ahead = false;
};

struct SimulatedStep {
  std::vector<double> stage;  // seconds on each rank
  HopTime hop;
  int after = -1;       // the earlier step whose answer this one needs; -1: none
  bool samples = true;  // a token comes back
};

class PipelineSimulation {
 public:
  // REQUIRES: ranks, depth >= 1.
  explicit PipelineSimulation(const PipelineSetting& setting);

  // Steps in the order of their launch. Returns when rank 0 has the step's token, or would have, if
  // it sampled one. REQUIRES: one stage time a rank; `after` was launched.
  double Launch(const SimulatedStep& step);

  // When step i was answered; steps count from 0.
  double answered(int i) const { return answered_.at(i); }
  // Seconds that a rank's stages have taken so far.
  double busy(int rank) const { return busy_.at(rank); }

 private:
  PipelineSetting setting_;
  double host_free_ = 0;      // rank 0's host
  std::vector<double> free_;  // each rank
  double receiver_free_ = 0;  // the last rank's host, where it receives ahead
  std::vector<double> busy_;
  std::vector<double> answered_;     // each step
  std::vector<double> left_flight_;  // when its place among the steps in flight was free again
};

// Tokens a second, once it runs evenly, of `groups` micro-batches of `batch` sequences each, which
// decode in turn. `step`: of one micro-batch, but for `after`.
double DecodeRate(const PipelineSetting& setting, int groups, int batch, SimulatedStep step);

// Seconds from the launch of the first of `pieces` until the last one's token is there.
double PromptSeconds(const PipelineSetting& setting, const std::vector<SimulatedStep>& pieces);

// The same where no stage waits for a host or an answer: what filling the pipeline and its hops
// leave.
double IdealPromptSeconds(PipelineSetting setting, const std::vector<SimulatedStep>& pieces);

}  // namespace keyline::bench
