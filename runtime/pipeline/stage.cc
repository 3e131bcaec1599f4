#include "runtime/pipeline/stage.h"

#include <glog/logging.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/ops.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/model/rope_table.h"
#include "runtime/pipeline/batch_upload.h"
#include "runtime/pipeline/hidden_states.h"
#include "runtime/pipeline/open_lane.h"
#include "runtime/pipeline/placed_chunks.h"
#include "runtime/pipeline/plan_facts.h"
#include "runtime/pipeline/step_limit.h"
#include "runtime/sampling/sampler.h"
#include "runtime/weights/resident_store.h"
#include "runtime/weights/streamed_store.h"

namespace keyline {

using pipeline::PlanBatch;
using pipeline::PlanChunk;
using pipeline::StepPlan;
using pipeline::StepResult;

struct Stage::Parts {
  Device* device;
  std::unique_ptr<Stream> stream;
  const DecoderModel* model;
  PipelineSpec spec;
  OffloadPlan offload;
  ShardRange shard;
  int rank;
  std::unique_ptr<LayerStore> layers;
  LayerBlob embedding;  // first rank
  LayerBlob head;       // last rank: final norm, and the head unless it is the embedding
  RopeTable rope;
  std::vector<std::unique_ptr<KvCache>> caches;
  bool records = false;  // the caches do what they are told with RecordPlacements
  std::optional<BatchUpload> upload;
  std::optional<Sampler> sampler;
  Tensor hidden, qkv, attended, mlp;
  Tensor head_input, logits;
  StepLimit limit;
  std::string receiving, sending;  // what the state says of these
  HiddenStates hidden_states;

  const Weight& head_weight() const {
    const LayerWeights own = head.weights();
    return own.matrices.empty() ? embedding.weights().matrices[0] : own.matrices[0];
  }
};

// One batch on its way through the layers.
struct Stage::Pass {
  const PlanBatch* plan;
  UploadedBatch uploaded;
  Activations a;
  int first_trace;  // in the result, of its chunks that are traced

  const Batch& batch() const { return uploaded.batch; }
};

Stage::Stage(std::unique_ptr<Parts> parts) : p_(std::move(parts)) {}
Stage::~Stage() = default;

const PipelineSpec& Stage::spec() const { return p_->spec; }
const DecoderModel& Stage::model() const { return *p_->model; }
bool Stage::works_on_its_own() const { return !p_->device->memory_is_host(); }

size_t Stage::weight_bytes() const {
  return p_->layers->device_bytes() + p_->embedding.device_bytes() + p_->head.device_bytes();
}

int Stage::unpinned_layers() const { return p_->layers->unpinned_layers(); }

size_t Stage::kv_bytes() const {
  size_t bytes = 0;
  for (const auto& cache : p_->caches) bytes += cache->device_bytes();
  return bytes;
}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(
    Device& device, const WeightSource& source, const DecoderModel& model, const PipelineSpec& spec,
    int rank, const std::function<void(size_t bytes)>& progress, const OffloadPlan& offload) {
  auto p = std::make_unique<Parts>();
  p->device = &device;
  p->stream = device.NewStream();
  p->model = &model;
  p->spec = spec;
  p->offload = offload;
  p->rank = rank;
  p->shard = spec.shards.at(rank);
  p->receiving = absl::StrCat("receive hidden states from rank ", rank - 1);
  p->sending = absl::StrCat("send hidden states to rank ", rank + 1);
  const ModelConfig& config = model.config();
  const ShardRange& shard = p->shard;

  const auto load = [&](const LayerSpec& tensors) -> absl::StatusOr<LayerBlob> {
    ASSIGN_OR_RETURN(LayerBlob blob,
                     LayerBlob::Load(device, *p->stream, source, tensors, spec.dtype));
    if (progress) progress(blob.device_bytes());
    return blob;
  };
  if (shard.embedding) {
    ASSIGN_OR_RETURN(p->embedding, load(EmbeddingTensors(model, spec)));
  }
  std::vector<LayerSpec> specs;
  for (int l = shard.first_layer; l < shard.first_layer + shard.layers; ++l) {
    specs.push_back(LayerTensors(model, spec, l));
  }
  if (offload.streams()) {
    ASSIGN_OR_RETURN(p->layers, StreamedStore::Load(device, *p->stream, source, shard.first_layer,
                                                    specs, spec.dtype,
                                                    {.streamed = offload.streamed,
                                                     .slots = offload.slots,
                                                     .host_bytes = offload.host_bytes},
                                                    progress));
  } else {
    ASSIGN_OR_RETURN(p->layers, ResidentStore::Load(device, *p->stream, source, shard.first_layer,
                                                    specs, spec.dtype, progress));
  }
  if (shard.head) {
    LayerSpec tensors = HeadTensors(model, spec);
    if (shard.embedding && config.tied_embeddings) tensors.matrices.clear();
    ASSIGN_OR_RETURN(p->head, load(tensors));
  }

  // Layers run one after the other, so they share the widest workspace there is.
  const KvCache* widest = nullptr;
  size_t widest_bytes = 0;
  for (int l = shard.first_layer; l < shard.first_layer + shard.layers; ++l) {
    const KvCacheShape shape = CacheShape(model, spec, l);
    ASSIGN_OR_RETURN(const KvCacheBytes bytes, KvCache::BytesFor(spec.cache, shape));
    ASSIGN_OR_RETURN(auto cache, KvCache::Create(device, spec.cache, shape, widest));
    if (bytes.workspace > widest_bytes) {
      widest = cache.get();
      widest_bytes = bytes.workspace;
    }
    p->caches.push_back(std::move(cache));
  }
  ASSIGN_OR_RETURN(p->rope, RopeTable::Make(device, *p->stream, config.rope, config.rotary_dim,
                                            spec.max_positions));
  const int step_tokens = std::max(offload.step_tokens, spec.max_pass_tokens);
  ASSIGN_OR_RETURN(p->upload, BatchUpload::Make(device, spec.cache.lanes, step_tokens,
                                                offload.batches(), spec.longest_cache()));
  const ActivationWidths widths = model.widths();
  const DType type = device.ActivationType(spec.dtype);
  const int tokens = spec.max_pass_tokens;
  ASSIGN_OR_RETURN(p->hidden, Tensor::Allocate(device, type, {step_tokens, widths.hidden}));
  ASSIGN_OR_RETURN(p->qkv, Tensor::Allocate(device, type, {tokens, widths.qkv}));
  ASSIGN_OR_RETURN(p->attended, Tensor::Allocate(device, type, {tokens, widths.attended}));
  ASSIGN_OR_RETURN(p->mlp, Tensor::Allocate(device, type, {tokens, widths.mlp}));
  if (shard.head) {
    ASSIGN_OR_RETURN(p->head_input, Tensor::Allocate(device, type, {kLogitRows, widths.hidden}));
    ASSIGN_OR_RETURN(p->logits,
                     Tensor::Allocate(device, DType::kF32, {kLogitRows, config.vocab_size}));
    ASSIGN_OR_RETURN(p->sampler, Sampler::Make(device, spec.cache.lanes, kLogitRows));
  }
  RETURN_IF_ERROR(ops::ReserveScratch(*p->stream, LargestPass(model, spec, rank)));
  return std::unique_ptr<Stage>(new Stage(std::move(p)));
}

absl::Status Stage::Begin(const StepPlan& plan, Communicator& comm) {
  CHECK(running() == 0 || (running() < kMostRunning && AsksTokensOnly(plan)));
  Running step = {.result = {},
                  .begin = absl::Now(),
                  .tokens = TokensOf(plan),
                  .states = MovesStates(plan),
                  .ends_later = AsksTokensOnly(plan)};
  // That of the step kPlaces ago, which has ended.
  static_assert(Sampler::kPlaces >= kMostRunning);
  if (p_->sampler.has_value() && plan.batches_size() > 0) step.place = p_->sampler->TakePlace();
  RankState& state = *comm.state();
  state.Step(plan.step());
  // The host's own work may take its time; a device that waits for a lost peer never ends.
  if (!p_->device->memory_is_host()) state.Expect(p_->limit.For(step.tokens, step.states));
  p_->stream->WhileWaiting(comm.ProgressWhileWaiting());
  absl::Status status = RunBatches(plan, comm, step);
  p_->stream->WhileWaiting(nullptr);
  if (status.ok()) running_.push_back(std::move(step));
  return status;
}

bool Stage::HasEnded() const {
  return running_.front().coming == 0 || p_->sampler->HasCome(running_.front().place);
}

StepResult Stage::End(Communicator& comm) {
  CHECK(!running_.empty());
  Running step = std::move(running_.front());
  running_.pop_front();
  if (step.coming > 0) {
    p_->stream->WhileWaiting(comm.ProgressWhileWaiting());
    TakeTokens(step);
    p_->stream->WhileWaiting(nullptr);
  }
  if (running_.empty()) comm.state()->Ended();
  if (!step.states) p_->limit.Took(absl::Now() - step.begin, step.tokens);
  if (step.result.has_timing()) {
    pipeline::StageTiming& timing = *step.result.mutable_timing();
    timing.set_end_ns(absl::GetCurrentTimeNanos());
    timing.set_streamed_bytes(p_->layers->streamed_bytes());
    timing.set_peak_bytes(p_->device->peak_bytes());
  }
  return std::move(step.result);
}

absl::StatusOr<StepResult> Stage::Run(const StepPlan& plan, Communicator& comm) {
  RETURN_IF_ERROR(Begin(plan, comm));
  return End(comm);
}

absl::Status Stage::RunBatches(const StepPlan& plan, Communicator& comm, Running& step) {
  Stream& s = *p_->stream;
  RankState& state = *comm.state();
  StepResult& result = step.result;
  result.set_step(plan.step());
  result.set_rank(p_->rank);
  if (plan.want_timing()) {
    result.mutable_timing()->set_rank(p_->rank);
    result.mutable_timing()->set_begin_ns(absl::GetCurrentTimeNanos());
  }
  if (plan.save_size() + plan.open_size() > 0) state.Doing("save and open lanes");
  for (const int lane : plan.save()) SaveLane(s, p_->caches, lane, result);
  for (const pipeline::OpenLane& open : plan.open()) {
    OpenLane(s, p_->caches, p_->shard.first_layer, p_->model->config().layers, open, result);
    if (p_->sampler.has_value()) p_->sampler->SetLane(s, open.lane(), ReadSampling(open));
  }
  if (std::exchange(p_->records, plan.want_placements()) != plan.want_placements()) {
    for (const auto& cache : p_->caches) cache->RecordPlacements(plan.want_placements());
  }
  for (int first = 0; first < plan.batches_size();) {
    const int count = SweepSize(plan, first);
    state.Doing("upload the batch");
    std::vector<Pass> passes = Upload(plan, first, count, step);
    RETURN_IF_ERROR(Sweep(plan, passes, comm, step));
    if (plan.want_placements()) {
      state.Doing("report what is kept");
      AddPlacements(p_->caches, p_->shard.first_layer, result);
    }
    first += count;
  }
  return absl::OkStatus();
}

int Stage::SweepSize(const StepPlan& plan, int first) const {
  int count = 0;
  int tokens = 0;
  for (; first + count < plan.batches_size() && count < p_->offload.batches(); ++count) {
    for (const PlanChunk& chunk : plan.batches(first + count).chunks()) {
      tokens += chunk.token_ids_size();
    }
    if (count > 0 && tokens > p_->offload.step_tokens) break;
  }
  return count;
}

std::vector<Stage::Pass> Stage::Upload(const StepPlan& plan, int first, int count, Running& step) {
  const std::span batches(plan.batches().data() + first, static_cast<size_t>(count));
  if (p_->sampler.has_value()) {
    p_->upload->Set(*p_->stream, batches, p_->sampler->FirstRow(step.place),
                    &p_->sampler->mark(step.place));
  } else {
    p_->upload->Set(*p_->stream, batches);
  }
  std::vector<Pass> passes;
  int row = 0;
  for (int i = 0; i < count; ++i) {
    UploadedBatch uploaded = p_->upload->batches()[i];
    if (p_->sampler.has_value()) uploaded.batch.drawn = p_->sampler->drawn();
    const int tokens = uploaded.batch.tokens;
    passes.push_back({.plan = batches[i],
                      .uploaded = uploaded,
                      .a = {.hidden = p_->hidden.view().Rows(row, tokens),
                            .qkv = p_->qkv.view().Rows(0, tokens),
                            .attended = p_->attended.view().Rows(0, tokens),
                            .mlp = p_->mlp.view().Rows(0, tokens)},
                      .first_trace = step.result.traces_size()});
    row += tokens;
    BeginTraces(*batches[i], step.result);
  }
  return passes;
}

absl::Status Stage::Sweep(const StepPlan& plan, std::span<Pass> passes, Communicator& comm,
                          Running& step) {
  Stream& s = *p_->stream;
  StepResult& result = step.result;
  RankState& state = *comm.state();
  // One token of each chunk and nobody who reads in between: the same operations on the same
  // memory at every step, so that a device can record them. Where layers stream it waits for their
  // copies, which a recording cannot, and the launches hide behind those.
  if (!p_->offload.streams() && passes[0].batch().max_chunk_tokens == 1 &&
      !HiddenStates::Asks(*passes[0].plan) && !plan.want_placements()) {
    RETURN_IF_ERROR(Receive(plan, passes[0], comm, result));
    state.Doing("run the layers");
    RunDecode(passes[0], comm, step);
    return absl::OkStatus();
  }
  const int layers = static_cast<int>(p_->caches.size());
  for (int i = 0; i < layers; ++i) {
    const int layer = p_->shard.first_layer + i;
    const LayerWeights weights = p_->layers->Acquire(s, layer);
    for (Pass& pass : passes) {
      if (i == 0) {
        RETURN_IF_ERROR(Receive(plan, pass, comm, result));
        Embed(pass);
      }
      state.Doing("run the layers");
      state.Layer(layer);
      RunLayer(i, weights, pass, result);
      Trace(i, pass, result);
      if (i == layers - 1) Finish(pass, /*drawn=*/false, comm, step);
    }
    p_->layers->Release(s, layer);
    comm.Progress();
  }
  return absl::OkStatus();
}

void Stage::RunDecode(Pass& pass, Communicator& comm, Running& step) {
  Stream& s = *p_->stream;
  const int rows = pass.uploaded.sampled.count;
  const bool drawn = p_->shard.head && rows > 0 && rows <= kLogitRows;
  s.Replay(pass.uploaded.decode_key(), [&] {
    KvCache::PlaceAhead(s, p_->caches, pass.batch());
    Embed(pass);
    for (int i = 0; i < p_->shard.layers; ++i) {
      const int layer = p_->shard.first_layer + i;
      comm.state()->Layer(layer);
      const LayerWeights weights = p_->layers->Acquire(s, layer);
      RunLayer(i, weights, pass, step.result);
      p_->layers->Release(s, layer);
      comm.Progress();
    }
    if (drawn) DrawRows(pass, 0, rows);
  });
  for (int i = 0; i < p_->shard.layers; ++i) Trace(i, pass, step.result);
  Finish(pass, drawn, comm, step);
}

absl::Status Stage::Receive(const StepPlan& plan, Pass& pass, Communicator& comm,
                            StepResult& result) {
  if (p_->shard.embedding) return absl::OkStatus();
  const int64_t before = absl::GetCurrentTimeNanos();
  comm.state()->Doing(p_->receiving);
  // The rank before may have all of the step in hand before this comes out.
  const absl::Duration limit = p_->limit.For(TokensOf(plan), MovesStates(plan));
  RETURN_IF_ERROR(comm.Recv(p_->rank - 1, pass.a.hidden, *p_->stream, limit));
  if (result.has_timing()) {
    pipeline::StageTiming& timing = *result.mutable_timing();
    timing.set_wait_ns(timing.wait_ns() + absl::GetCurrentTimeNanos() - before);
  }
  return absl::OkStatus();
}

void Stage::Embed(Pass& pass) {
  if (!p_->shard.embedding) return;
  ops::Embed(*p_->stream, pass.a.hidden, pass.batch(), p_->embedding.weights().matrices[0],
             p_->model->embedding_scale());
}

void Stage::RunLayer(int index, const LayerWeights& weights, Pass& pass, StepResult& result) {
  const int layer = p_->shard.first_layer + index;
  p_->hidden_states.Read(*p_->stream, *pass.plan, layer, pass.a.hidden, result);
  p_->model->Forward(*p_->stream, pass.batch(), layer, weights, p_->rope.rope(), *p_->caches[index],
                     pass.a);
}

void Stage::Finish(Pass& pass, bool drawn, Communicator& comm, Running& step) {
  if (!p_->shard.head) {
    comm.state()->Doing(p_->sending);
    comm.Send(p_->rank + 1, pass.a.hidden, *p_->stream);
    return;
  }
  comm.state()->Doing("sample or score");
  if (pass.uploaded.sampled.count > 0) SampleRows(pass, drawn, step);
  if (pass.uploaded.scored.count > 0) ScoreRows(pass, step.result);
  ReadNormed(pass, step.result);
}

RmsNorm Stage::FinalNorm() const {
  return {p_->head.weights().vectors[0].as<float>(), p_->model->config().norm_eps};
}

TensorView Stage::Logits(const Pass& pass, const int32_t* rows, int count) {
  Stream& s = *p_->stream;
  const TensorView input = p_->head_input.view().Rows(0, count);
  const TensorView logits = p_->logits.view().Rows(0, count);
  ops::GatherRows(s, input, pass.a.hidden, rows);
  ops::NormMatMul(s, logits, input, FinalNorm(), p_->head_weight());
  return logits;
}

TensorView Stage::DrawRows(const Pass& pass, int first, int count) {
  const HeadRows& rows = pass.uploaded.sampled;
  const TensorView logits = Logits(pass, rows.row + first, count);
  p_->sampler->Sample(*p_->stream, logits, rows.lane + first, rows.position + first,
                      pass.uploaded.first_row);
  return logits;
}

void Stage::SampleRows(const Pass& pass, bool drawn, Running& step) {
  const HeadRows& rows = pass.uploaded.sampled;
  std::vector<const PlanChunk*> chunks;
  chunks.reserve(rows.count);
  for (const PlanChunk& chunk : pass.plan->chunks()) {
    if (chunk.output() == pipeline::OUTPUT_SAMPLE) chunks.push_back(&chunk);
  }
  for (int first = 0; first < rows.count; first += kLogitRows) {
    const int count = std::min(kLogitRows, rows.count - first);
    const TensorView logits =
        drawn ? p_->logits.view().Rows(first, count) : DrawRows(pass, first, count);
    p_->sampler->Mark(*p_->stream, step.place, count);
    step.coming = count;
    int top = 0;
    for (int i = 0; i < count; ++i) {
      step.result.add_tokens()->set_lane(chunks[first + i]->lane());
      top = std::max(top, chunks[first + i]->top_logprobs());
    }
    if (step.ends_later) return;
    std::vector<TopTokens> tops;
    if (top > 0) tops = p_->sampler->Top(*p_->stream, logits, top);
    const int before = step.result.tokens_size() - count;
    TakeTokens(step);
    for (int i = 0; i < count; ++i) {
      pipeline::SampledTokenResult& out = *step.result.mutable_tokens(before + i);
      for (int t = 0; t < chunks[first + i]->top_logprobs(); ++t) {
        out.add_top_tokens(tops[i].tokens[t]);
        out.add_top_logprobs(tops[i].logprobs[t]);
      }
    }
  }
}

void Stage::TakeTokens(Running& step) {
  const std::span<const SampledToken> sampled = p_->sampler->Fetched(*p_->stream, step.place);
  const int before = step.result.tokens_size() - std::exchange(step.coming, 0);
  for (size_t i = 0; i < sampled.size(); ++i) {
    pipeline::SampledTokenResult& out = *step.result.mutable_tokens(before + static_cast<int>(i));
    out.set_token(sampled[i].token);
    out.set_logprob(sampled[i].logprob);
    out.set_non_finite(sampled[i].non_finite);
  }
}

void Stage::ScoreRows(const Pass& pass, StepResult& result) {
  const HeadRows& rows = pass.uploaded.scored;
  std::vector<pipeline::ScoredChunk*> row_chunk;  // of each row
  std::vector<bool> row_logits;
  for (const PlanChunk& chunk : pass.plan->chunks()) {
    const bool logits = chunk.output() == pipeline::OUTPUT_LOGITS;
    if (!logits && chunk.output() != pipeline::OUTPUT_LOGPROBS) continue;
    pipeline::ScoredChunk* scored = result.add_scores();
    scored->set_lane(chunk.lane());
    scored->set_first_position(chunk.first_position());
    row_chunk.insert(row_chunk.end(), chunk.token_ids_size(), scored);
    row_logits.insert(row_logits.end(), chunk.token_ids_size(), logits);
  }
  CHECK_EQ(static_cast<int>(row_chunk.size()), rows.count);
  std::vector<float> host(p_->model->config().vocab_size);
  for (int first = 0; first < rows.count; first += kLogitRows) {
    const int count = std::min(kLogitRows, rows.count - first);
    const TensorView logits = Logits(pass, rows.row + first, count);
    const std::span<const float> logprobs =
        p_->sampler->LogProbs(*p_->stream, logits, rows.target + first);
    for (int i = 0; i < count; ++i) {
      row_chunk[first + i]->add_logprobs(logprobs[i]);
      if (!row_logits[first + i]) continue;
      p_->stream->CopyAsync(host.data(), logits.row<float>(i), host.size() * sizeof(float));
      p_->stream->Synchronize();
      row_chunk[first + i]->mutable_logits()->append(reinterpret_cast<const char*>(host.data()),
                                                     host.size() * sizeof(float));
    }
  }
}

// The states are nobody's after the head, so they are normed where they lie.
void Stage::ReadNormed(const Pass& pass, StepResult& result) {
  const int layers = p_->model->config().layers;
  if (!HiddenStates::Asks(*pass.plan, layers)) return;
  ops::Norm(*p_->stream, pass.a.hidden, pass.a.hidden, FinalNorm());
  p_->hidden_states.Read(*p_->stream, *pass.plan, layers, pass.a.hidden, result);
}

void Stage::Trace(int index, const Pass& pass, StepResult& result) {
  if (result.traces_size() == pass.first_trace) return;
  TraceLayer(*p_->stream, *p_->caches[index], p_->shard.first_layer + index, *pass.plan,
             pass.first_trace, result);
}

}  // namespace keyline
