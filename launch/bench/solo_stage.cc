#include "launch/bench/solo_stage.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "runtime/cache/chunk_plan.h"
#include "runtime/pipeline/open_lane.h"
#include "runtime/transport/communicator.h"

namespace keyline::bench {
namespace {

double Seconds(absl::Time since) { return absl::ToDoubleSeconds(absl::Now() - since); }

}  // namespace

std::vector<PromptPiece> CutPrompt(const PipelineSpec& spec, int tokens) {
  const LanePolicy& policy = spec.cache.policy;
  std::vector<PromptPiece> pieces;
  int at = 0;
  for (const int chunk : PlanChunks(spec.cache_lengths, tokens, ChunkSize(policy))) {
    const int most = at == 0 ? spec.max_pass_tokens : chunk;  // only a first chunk is cut
    for (int done = 0; done < chunk;) {
      const int piece = std::min(most, chunk - done);
      pieces.push_back(
          {.first = at + done, .tokens = piece, .chunk_first = at, .chunk_tokens = chunk});
      done += piece;
    }
    at += chunk;
  }
  return pieces;
}

// The neighbours that are not there.
class SoloStage::Nobody : public Communicator {
 public:
  Nobody(int rank, int size) : state_(std::make_shared<RankState>(rank)), size_(size) {}

  // Rows that come in place of hidden states, again and again.
  absl::Status Fill(Device& device, Stream& stream, DType dtype, int width) {
    constexpr int kRows = 64;
    ASSIGN_OR_RETURN(rows_, RandomTensor(device, stream, dtype, kRows, width, /*seed=*/1));
    return absl::OkStatus();
  }
  // Waits until all that was sent to nobody is computed.
  void Settle() {
    if (stream_ != nullptr) stream_->Synchronize();
  }

  int rank() const override { return state_->rank(); }
  int size() const override { return size_; }
  const std::shared_ptr<RankState>& state() override { return state_; }
  void SendBytes(int /*peer*/, std::span<const std::byte> /*message*/) override {}
  absl::StatusOr<Bytes> RecvBytes(int /*peer*/, absl::Duration /*timeout*/,
                                  std::string_view /*awaited*/) override {
    return absl::UnavailableError("a stage by itself hears from nobody");
  }
  bool HasBytes(int /*peer*/) override { return false; }
  void Send(int /*peer*/, TensorView /*tensor*/, Stream& stream) override { stream_ = &stream; }
  // Once: then the stage's own results do, which norms keep in bounds.
  absl::Status Recv(int /*peer*/, TensorView tensor, Stream& stream,
                    absl::Duration /*timeout*/) override {
    stream_ = &stream;
    const int64_t rows = tensor.shape[0];
    for (; filled_ < rows; filled_ += rows_.view().shape[0]) {
      const int64_t count = std::min(rows - filled_, rows_.view().shape[0]);
      const TensorView part = tensor.Rows(filled_, count);
      stream.CopyAsync(part.data, rows_.view().data, part.bytes());
    }
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<RankState> state_;
  const int size_;
  Tensor rows_;
  int64_t filled_ = 0;
  Stream* stream_ = nullptr;  // the stage's
};

SoloStage::SoloStage() = default;
SoloStage::~SoloStage() = default;
Stage& SoloStage::stage() { return *stage_; }
Communicator& SoloStage::communicator() { return *nobody_; }

absl::StatusOr<std::unique_ptr<SoloStage>> SoloStage::Create(Device& device,
                                                             const OpenedModel& opened,
                                                             const PipelineSpec& spec,
                                                             const ShardRange& shard) {
  PipelineSpec own = spec;
  own.shards.clear();
  if (!shard.embedding) own.shards.push_back({});
  const int rank = static_cast<int>(own.shards.size());
  own.shards.push_back(shard);
  if (!shard.head) own.shards.push_back({});
  own.pipeline_depth = 1;

  std::unique_ptr<SoloStage> solo(new SoloStage);
  solo->nobody_ = std::make_unique<Nobody>(rank, static_cast<int>(own.shards.size()));
  const std::unique_ptr<Stream> stream = device.NewStream();
  RETURN_IF_ERROR(solo->nobody_->Fill(device, *stream, device.ActivationType(spec.dtype),
                                      opened.model->widths().hidden));
  ASSIGN_OR_RETURN(solo->stage_,
                   Stage::Create(device, opened.weights(), *opened.model, own, rank, nullptr));
  return solo;
}

void SoloStage::AddPiece(const PromptPiece& piece, int lane, bool sample,
                         pipeline::StepPlan& plan) const {
  if (plan.batches_size() == 0) plan.add_batches();
  pipeline::PlanChunk& chunk = *plan.mutable_batches(0)->add_chunks();
  chunk.set_lane(lane);
  chunk.set_first_position(piece.first);
  for (int i = 0; i < piece.tokens; ++i) {
    chunk.add_token_ids((piece.first + i + 1 + 7919u * lane) % stage_->model().config().vocab_size);
  }
  chunk.set_takes_mass(piece.chunk_first > 0);
  chunk.set_chunk_tokens(piece.chunk_tokens);
  chunk.set_chunk_position(piece.chunk_first);
  if (sample) chunk.set_output(pipeline::OUTPUT_SAMPLE);
}

absl::Status SoloStage::Run(pipeline::StepPlan& plan) {
  plan.set_step(next_step_++);
  return stage_->Run(plan, *nobody_).status();
}

absl::Status SoloStage::OpenLanes(int count) {
  pipeline::StepPlan plan;
  for (int lane = 0; lane < count; ++lane) {
    pipeline::OpenLane& open = *plan.add_open();
    open.set_lane(lane);
    WritePolicy(stage_->spec().cache.policy, open);
    open.set_top_p(1);
  }
  return Run(plan);
}

absl::StatusOr<double> SoloStage::DecodeSeconds(int batch, int depth, int steps) {
  RETURN_IF_ERROR(OpenLanes(batch));
  for (int lane = 0; lane < batch; ++lane) {
    for (const PromptPiece& piece : CutPrompt(stage_->spec(), depth)) {
      pipeline::StepPlan plan;
      AddPiece(piece, lane, /*sample=*/false, plan);
      RETURN_IF_ERROR(Run(plan));
    }
  }
  nobody_->Settle();
  const absl::Time begin = absl::Now();
  for (int at = depth; at < depth + steps; ++at) {
    pipeline::StepPlan plan;
    for (int lane = 0; lane < batch; ++lane) {
      AddPiece({.first = at, .tokens = 1, .chunk_first = at, .chunk_tokens = 1}, lane,
               /*sample=*/true, plan);
    }
    RETURN_IF_ERROR(Run(plan));
  }
  nobody_->Settle();
  return Seconds(begin) / steps;
}

absl::StatusOr<std::vector<double>> SoloStage::PieceSeconds(
    const std::vector<PromptPiece>& pieces) {
  RETURN_IF_ERROR(OpenLanes(1));
  nobody_->Settle();
  std::vector<double> seconds;
  for (const PromptPiece& piece : pieces) {
    const absl::Time begin = absl::Now();
    pipeline::StepPlan plan;
    AddPiece(piece, 0, /*sample=*/&piece == &pieces.back(), plan);
    RETURN_IF_ERROR(Run(plan));
    nobody_->Settle();
    seconds.push_back(Seconds(begin));
  }
  return seconds;
}

}  // namespace keyline::bench
