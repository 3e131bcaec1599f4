#include "launch/bench/stage_times.h"

#include <glog/logging.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/engine_round.h"
#include "launch/bench/hop_times.h"
#include "launch/rank_join.h"
#include "launch/ranks.h"
#include "runtime/pipeline/coordinator.h"

namespace keyline::bench {
namespace {

constexpr int64_t kBytesOfRound = int64_t{64} << 20;

// The stages that are measured: layers alone, few and many; many behind the embedding, and before
// the head; all of it, through the engine.
enum Kind { kFew, kMany, kFirst, kLast, kWhole, kKinds };

// One rank's measurements, all of it medians of rounds.
class Measurer {
 public:
  Measurer(const Run& run, const PipelineSpec& decode, const PipelineSpec& prefill, int ranks)
      : run_(run), decode_(decode), prefill_(prefill) {
    const int layers = run.opened.model->config().layers;
    many_ = std::clamp((layers + ranks - 1) / ranks, 2, layers);
    few_ = std::max(1, many_ / 4);
    pieces_ = CutPrompt(prefill_, run.args.prompt);
  }

  // Seconds: for each kind a step of each batch, and each piece; of the last kind, between pieces.
  absl::StatusOr<std::vector<double>> Measure(Communicator& comm, Device& device) {
    std::vector<double> all;
    for (int kind = 0; kind < kKinds; ++kind) {
      const ShardRange shard{.first_layer = 0,
                             .layers = kind == kFew ? few_ : many_,
                             .embedding = kind == kFirst || kind == kWhole,
                             .head = kind == kLast || kind == kWhole};
      {
        ASSIGN_OR_RETURN(const auto solo, SoloStage::Create(device, run_.opened, decode_, shard));
        RETURN_IF_ERROR(Meet(comm));
        for (const int batch : run_.args.batch) {
          ASSIGN_OR_RETURN(all.emplace_back(),
                           kind == kWhole ? StepOfEngine(*solo, batch) : Step(*solo, batch));
        }
      }
      if (kind == kWhole) break;
      ASSIGN_OR_RETURN(const auto solo, SoloStage::Create(device, run_.opened, prefill_, shard));
      RETURN_IF_ERROR(Meet(comm));
      std::vector<std::vector<double>> rounds(pieces_.size());
      for (int round = 0; round <= run_.args.repeat; ++round) {
        ASSIGN_OR_RETURN(const std::vector<double> seconds, solo->PieceSeconds(pieces_));
        for (size_t i = 0; i < pieces_.size() && round > 0; ++i) rounds[i].push_back(seconds[i]);
      }
      for (const std::vector<double>& round : rounds) all.push_back(Median(round));
    }
    // The host's time is the same for any number of layers.
    const ShardRange ends{.first_layer = 0, .layers = few_, .embedding = true, .head = true};
    ASSIGN_OR_RETURN(const auto solo, SoloStage::Create(device, run_.opened, prefill_, ends));
    RETURN_IF_ERROR(Meet(comm));
    ASSIGN_OR_RETURN(all.emplace_back(), TurnaroundOfPieces(*solo));
    return all;
  }

  // What Measure's seconds come to.
  void Fill(const std::vector<double>& all, StageTimes& times) const {
    const size_t batches = run_.args.batch.size();
    const size_t row = batches + pieces_.size();
    const auto parts = [&](size_t column) {
      const auto seconds = [&](Kind kind) { return all[kind * row + column]; };
      PartTimes p;
      // Nothing takes less than no time, whatever the noise.
      p.layer = std::max(seconds(kMany) - seconds(kFew), 0.0) / (many_ - few_);
      p.fixed = std::max(seconds(kMany) - many_ * p.layer, 0.0);
      p.embedding = std::max(seconds(kFirst) - seconds(kMany), 0.0);
      p.head = std::max(seconds(kLast) - seconds(kMany), 0.0);
      return p;
    };
    for (size_t b = 0; b < batches; ++b) {
      const PartTimes step = parts(b);
      const double alone = step.Stage({.layers = many_, .embedding = true, .head = true});
      times.decode.push_back({.batch = run_.args.batch[b],
                              .step = step,
                              .turnaround = std::max(all[kWhole * row + b] - alone, 0.0),
                              .hop = {}});
    }
    times.pieces = pieces_;
    for (size_t i = 0; i < pieces_.size(); ++i) times.piece.push_back(parts(batches + i));
    times.piece_turnaround = all.back();
  }

  int most_tokens() const {
    int most = 0;
    for (const PromptPiece& piece : pieces_) most = std::max(most, piece.tokens);
    return most;
  }

 private:
  int depth() const { return std::max(run_.args.depth[0], 1); }

  absl::StatusOr<double> Step(SoloStage& solo, int batch) const {
    std::vector<double> rounds;
    for (int round = 0; round <= run_.args.repeat; ++round) {  // the first one warms up
      ASSIGN_OR_RETURN(rounds.emplace_back(), solo.DecodeSeconds(batch, depth(), run_.args.tokens));
    }
    rounds.erase(rounds.begin());
    return Median(rounds);
  }

  absl::StatusOr<double> StepOfEngine(SoloStage& solo, int batch) const {
    Coordinator coordinator(solo.stage(), solo.communicator());
    coordinator.RunAhead(false);  // the turnaround is looked for
    std::vector<double> rounds;
    for (int round = 0; round <= run_.args.repeat; ++round) {
      std::vector<Request> requests;
      requests.reserve(batch);
      for (int i = 0; i < batch; ++i) {
        requests.push_back(RandomRequest(run_.opened.model->config().vocab_size, depth(),
                                         run_.args.tokens, 100u + i));
      }
      ASSIGN_OR_RETURN(const auto sinks, Serve(coordinator, std::move(requests)));
      const FullSteps full = WhileAllDecode(sinks);
      rounds.push_back(full.seconds * batch / full.tokens);
    }
    rounds.erase(rounds.begin());
    return Median(rounds);
  }

  // From the end of a piece's stage to the begin of the next one's, by the stage's own account.
  absl::StatusOr<double> TurnaroundOfPieces(SoloStage& solo) const {
    Coordinator coordinator(solo.stage(), solo.communicator());
    coordinator.RunAhead(false);
    std::vector<double> turnarounds;
    for (int round = 0; round <= run_.args.repeat; ++round) {
      std::vector<Request> requests;
      requests.push_back(RandomRequest(run_.opened.model->config().vocab_size, run_.args.prompt,
                                       /*new_tokens=*/1, 100u + round));
      int64_t end_ns = absl::GetCurrentTimeNanos();
      const auto on_timing = [&](const pipeline::StageTiming& timing, uint64_t /*step*/) {
        const auto between = static_cast<double>(timing.begin_ns() - end_ns);
        if (round > 0) turnarounds.push_back(between * 1e-9);
        end_ns = timing.end_ns();
      };
      RETURN_IF_ERROR(Serve(coordinator, std::move(requests), on_timing).status());
    }
    return std::max(Median(turnarounds), 0.0);
  }

  const Run& run_;
  const PipelineSpec& decode_;
  const PipelineSpec& prefill_;
  int many_, few_;
  std::vector<PromptPiece> pieces_;
};

// Between ranks 0 and 1; both call it. What it returns is rank 0's to use.
absl::StatusOr<HopTime> HopOf(const Run& run, Communicator& comm, Stream& stream, DType type,
                              int rows) {
  ASSIGN_OR_RETURN(const Tensor state, Tensor::Allocate(stream.device(), type,
                                                        {rows, run.opened.model->widths().hidden}));
  const TensorView view = state.view();
  const int count = static_cast<int>(
      std::clamp<int64_t>(kBytesOfRound / static_cast<int64_t>(view.bytes()), 4, 50));
  return MeasureHop(comm, stream, view, count, run.args.repeat);
}

absl::Status MeasureHops(const Run& run, Communicator& comm, Device& device, DType type,
                         int piece_tokens, StageTimes& times) {
  const std::unique_ptr<Stream> stream = device.NewStream();  // NCCL's is one and the same
  for (size_t b = 0; b < run.args.batch.size(); ++b) {
    ASSIGN_OR_RETURN(const HopTime hop, HopOf(run, comm, *stream, type, run.args.batch[b]));
    if (comm.rank() == 0) times.decode[b].hop = hop;
  }
  ASSIGN_OR_RETURN(times.piece_hop, HopOf(run, comm, *stream, type, piece_tokens));
  constexpr size_t kAnswerBytes = 256;
  ASSIGN_OR_RETURN(times.answer, BytesPingPong(comm, kAnswerBytes, 50, kPause));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StageTimes> MeasureStageTimes(const Run& run, int ranks) {
  const Arguments& args = run.args;
  if (run.opened.model->config().layers < 2) {
    return absl::InvalidArgumentError(
        "--model: bench pipeline needs a model of at least 2 layers, to tell their time from that "
        "of a stage");
  }
  // The caches of the measured pipeline, whose length decides how attention is split.
  Arguments together = args;
  for (int& batch : together.batch) batch *= ranks;
  PipelineNeeds needs = DecodeNeeds(run.options, together);
  needs.lanes = *std::max_element(args.batch.begin(), args.batch.end());
  ASSIGN_OR_RETURN(const PipelineSpec decode, MakeSpec(run.options, run.opened, needs));
  ASSIGN_OR_RETURN(
      const PipelineSpec prefill,
      MakeSpec(run.options, run.opened, {.lanes = 1, .cache_length = args.prompt + 1}));
  StageTimes times;
  const auto play = [&](std::unique_ptr<Communicator> comm) -> absl::Status {
    std::unique_ptr<Device> device;
    StageTimes own;
    ASSIGN_OR_RETURN(own.transport, JoinRanks(run.options, ranks, comm, device));
    own.device = device->description();
    own.devices_run_alone = !device->memory_is_host() && (ranks == 1 || own.transport == "nccl");
    own.last_receives_ahead = !device->memory_is_host() && !own.devices_run_alone;
    Measurer measurer(run, decode, prefill, ranks);
    ASSIGN_OR_RETURN(std::vector<double> seconds, measurer.Measure(*comm, *device));
    if (comm->rank() > 0) {
      comm->SendBytes(0, std::as_bytes(std::span(seconds)));
    } else {
      std::vector<double> sum = seconds;
      for (int r = 1; r < ranks; ++r) {
        ASSIGN_OR_RETURN(const Bytes bytes, comm->RecvBytes(r, kPeerPatience, "its times"));
        CHECK_EQ(bytes.size(), seconds.size() * sizeof(double));
        std::memcpy(seconds.data(), bytes.data(), bytes.size());
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += seconds[i];
      }
      for (double& value : sum) value /= ranks;
      measurer.Fill(sum, own);
    }
    if (ranks > 1 && comm->rank() < 2) {
      RETURN_IF_ERROR(MeasureHops(run, *comm, *device, device->ActivationType(decode.dtype),
                                  measurer.most_tokens(), own));
    }
    RETURN_IF_ERROR(Meet(*comm));
    if (comm->rank() == 0) times = std::move(own);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(PlayRanks(run.options, ranks, play));
  if (ranks == 1) times.transport.clear();
  return times;
}

}  // namespace keyline::bench
