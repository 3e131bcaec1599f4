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
#include "runtime/pipeline/step_limit.h"
#include "runtime/sampling/sampler.h"
#include "runtime/weights/resident_store.h"

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
  ShardRange shard;
  int rank;
  int ranks;
  std::unique_ptr<LayerStore> layers;
  LayerBlob embedding;  // first rank
  LayerBlob head;       // last rank: final norm, and the head unless it is the embedding
  RopeTable rope;
  std::vector<std::unique_ptr<KvCache>> caches;
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

Stage::Stage(std::unique_ptr<Parts> parts) : p_(std::move(parts)) {}
Stage::~Stage() = default;

const PipelineSpec& Stage::spec() const { return p_->spec; }
const DecoderModel& Stage::model() const { return *p_->model; }

size_t Stage::weight_bytes() const {
  return p_->layers->device_bytes() + p_->embedding.device_bytes() + p_->head.device_bytes();
}

size_t Stage::kv_bytes() const {
  size_t bytes = 0;
  for (const auto& cache : p_->caches) bytes += cache->device_bytes();
  return bytes;
}

absl::StatusOr<std::unique_ptr<Stage>> Stage::Create(
    Device& device, const WeightSource& source, const DecoderModel& model, const PipelineSpec& spec,
    int rank, const std::function<void(size_t bytes)>& progress) {
  auto p = std::make_unique<Parts>();
  p->device = &device;
  p->stream = device.NewStream();
  p->model = &model;
  p->spec = spec;
  p->rank = rank;
  p->ranks = static_cast<int>(spec.shards.size());
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
  ASSIGN_OR_RETURN(p->layers, ResidentStore::Load(device, *p->stream, source, shard.first_layer,
                                                  specs, spec.dtype, progress));
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
  ASSIGN_OR_RETURN(p->upload, BatchUpload::Make(device, spec.cache.lanes, spec.max_pass_tokens));
  const ActivationWidths widths = model.widths();
  const DType type = device.ActivationType(spec.dtype);
  const int tokens = spec.max_pass_tokens;
  ASSIGN_OR_RETURN(p->hidden, Tensor::Allocate(device, type, {tokens, widths.hidden}));
  ASSIGN_OR_RETURN(p->qkv, Tensor::Allocate(device, type, {tokens, widths.qkv}));
  ASSIGN_OR_RETURN(p->attended, Tensor::Allocate(device, type, {tokens, widths.attended}));
  ASSIGN_OR_RETURN(p->mlp, Tensor::Allocate(device, type, {tokens, widths.mlp}));
  if (shard.head) {
    ASSIGN_OR_RETURN(p->head_input, Tensor::Allocate(device, type, {kLogitRows, widths.hidden}));
    ASSIGN_OR_RETURN(p->logits,
                     Tensor::Allocate(device, DType::kF32, {kLogitRows, config.vocab_size}));
    ASSIGN_OR_RETURN(p->sampler, Sampler::Make(device, spec.cache.lanes, kLogitRows));
  }
  return std::unique_ptr<Stage>(new Stage(std::move(p)));
}

bool Stage::Answers(const StepPlan& plan, int rank, int ranks) {
  if (plan.stop()) return false;
  if (rank == ranks - 1 || plan.want_timing() || plan.want_placements()) return true;
  if (MovesStates(plan)) return true;
  for (const PlanBatch& batch : plan.batches()) {
    for (const PlanChunk& chunk : batch.chunks()) {
      if (chunk.trace() || chunk.hidden_ends()) return true;
    }
  }
  return false;
}

absl::Status Stage::RestoreLane(const pipeline::OpenLane& open) {
  const int layers = p_->model->config().layers;
  if (open.restore_size() != layers) {
    return absl::FailedPreconditionError(
        absl::StrCat("the saved state has ", open.restore_size(), " layers, this model ", layers));
  }
  const LanePolicy policy = ReadPolicy(open);
  for (size_t i = 0; i < p_->caches.size(); ++i) {
    const int layer = p_->shard.first_layer + static_cast<int>(i);
    KvCache& cache = *p_->caches[i];
    absl::Status restored = cache.RestoreLane(*p_->stream, open.lane(), open.restore(layer));
    if (restored.ok()) {
      restored = cache.CheckLane(*p_->stream, open.lane(), policy, layer, open.restore_tokens());
    }
    if (!restored.ok()) {
      return absl::Status(restored.code(),
                          absl::StrCat("layer ", layer, ": ", std::string(restored.message())));
    }
  }
  return absl::OkStatus();
}

void Stage::SaveLane(int lane, StepResult& result) {
  pipeline::LaneState& state = *result.add_saved();
  state.set_lane(lane);
  for (const auto& cache : p_->caches) {
    absl::StatusOr<std::string> saved = cache->SaveLane(*p_->stream, lane);
    if (!saved.ok()) {
      state.clear_layers();
      state.set_status_code(static_cast<int>(saved.status().code()));
      state.set_status_message(std::string(saved.status().message()));
      return;
    }
    *state.add_layers() = *std::move(saved);
  }
}

void Stage::OpenLane(const pipeline::OpenLane& open, StepResult& result) {
  if (open.restore_size() > 0) {
    const absl::Status restored = RestoreLane(open);
    if (!restored.ok()) {
      pipeline::RestoreFailure& failure = *result.add_restore_failures();
      failure.set_lane(open.lane());
      failure.set_status_code(static_cast<int>(restored.code()));
      failure.set_status_message(std::string(restored.message()));
    }
  } else if (!open.keep()) {
    const LanePolicy policy = ReadPolicy(open);
    for (size_t i = 0; i < p_->caches.size(); ++i) {
      p_->caches[i]->OpenLane(*p_->stream, open.lane(), policy,
                              p_->shard.first_layer + static_cast<int>(i));
    }
  }
  if (p_->sampler.has_value()) {
    p_->sampler->SetLane(*p_->stream, open.lane(),
                         {.temperature = open.temperature(),
                          .top_k = open.top_k(),
                          .top_p = open.top_p(),
                          .min_p = open.min_p(),
                          .seed = open.seed(),
                          .sequence = open.sequence()});
  }
}

absl::StatusOr<StepResult> Stage::Run(const StepPlan& plan, Communicator& comm) {
  const absl::Time begin = absl::Now();
  int tokens = 0;
  for (const PlanBatch& batch : plan.batches()) {
    for (const PlanChunk& chunk : batch.chunks()) tokens += chunk.token_ids_size();
  }
  const bool states = MovesStates(plan);
  RankState& state = *comm.state();
  state.Step(plan.step());
  // The host's own work may take its time; a device that waits for a lost peer never ends.
  if (!p_->device->memory_is_host()) state.Expect(p_->limit.For(tokens, states));
  p_->stream->WhileWaiting([&comm] { comm.Progress(); });
  absl::StatusOr<StepResult> result = RunBatches(plan, comm);
  p_->stream->WhileWaiting(nullptr);
  if (!result.ok()) return result;
  state.Ended();
  if (!states) p_->limit.Took(absl::Now() - begin, tokens);
  return result;
}

absl::StatusOr<StepResult> Stage::RunBatches(const StepPlan& plan, Communicator& comm) {
  Stream& s = *p_->stream;
  RankState& state = *comm.state();
  StepResult result;
  result.set_step(plan.step());
  result.set_rank(p_->rank);
  const int64_t begin_ns = absl::GetCurrentTimeNanos();
  int64_t wait_ns = 0;
  state.Doing("save and open lanes");
  for (const int lane : plan.save()) SaveLane(lane, result);
  for (const pipeline::OpenLane& open : plan.open()) OpenLane(open, result);
  for (const auto& cache : p_->caches) cache->RecordPlacements(plan.want_placements());
  for (const PlanBatch& plan_batch : plan.batches()) {
    p_->upload->Set(s, plan_batch);
    const Batch& batch = p_->upload->batch();
    // One token of each chunk and nobody who reads in between: the same operations on the same
    // memory at every step, so that a device can record them.
    const bool decode =
        batch.max_chunk_tokens == 1 && !HiddenStates::Asks(plan_batch) && !plan.want_placements();
    const bool drawn = decode && p_->shard.head && p_->upload->sampled().count > 0 &&
                       p_->upload->sampled().count <= kLogitRows;
    Activations a{.hidden = p_->hidden.view().Rows(0, batch.tokens),
                  .qkv = p_->qkv.view().Rows(0, batch.tokens),
                  .attended = p_->attended.view().Rows(0, batch.tokens),
                  .mlp = p_->mlp.view().Rows(0, batch.tokens)};
    if (!p_->shard.embedding) {
      const int64_t before = absl::GetCurrentTimeNanos();
      state.Doing(p_->receiving);
      const absl::Duration limit = p_->limit.For(batch.tokens, MovesStates(plan));
      RETURN_IF_ERROR(comm.Recv(p_->rank - 1, a.hidden, s, limit));
      wait_ns += absl::GetCurrentTimeNanos() - before;
    }
    const auto pass = [&] {
      RunLayers(plan_batch, a, comm, result);
      if (drawn) DrawRows(0, p_->upload->sampled().count);
    };
    state.Doing("run the layers");
    if (decode) {
      s.Replay(uint64_t(batch.chunks) << 32 | uint64_t(p_->upload->sampled().count), pass);
    } else {
      pass();
    }
    if (p_->shard.head) {
      state.Doing("sample or score");
      if (p_->upload->sampled().count > 0) SampleRows(plan_batch, drawn, result);
      if (p_->upload->scored().count > 0) ScoreRows(plan_batch, result);
      ReadNormed(plan_batch, a.hidden, result);
    } else {
      state.Doing(p_->sending);
      comm.Send(p_->rank + 1, a.hidden, s);
    }
    state.Doing("report what is kept");
    Trace(plan_batch, result);
    if (plan.want_placements()) AddPlacements(p_->caches, p_->shard.first_layer, result);
  }
  if (plan.want_timing()) {
    pipeline::StageTiming& timing = *result.mutable_timing();
    timing.set_rank(p_->rank);
    timing.set_begin_ns(begin_ns);
    timing.set_end_ns(absl::GetCurrentTimeNanos());
    timing.set_wait_ns(wait_ns);
  }
  return result;
}

RmsNorm Stage::FinalNorm() const {
  return {p_->head.weights().vectors[0].as<float>(), p_->model->config().norm_eps};
}

TensorView Stage::Logits(const int32_t* rows, int count) {
  Stream& s = *p_->stream;
  const TensorView input = p_->head_input.view().Rows(0, count);
  const TensorView logits = p_->logits.view().Rows(0, count);
  ops::GatherRows(s, input, p_->hidden, rows);
  ops::NormMatMul(s, logits, input, FinalNorm(), p_->head_weight());
  return logits;
}

void Stage::RunLayers(const PlanBatch& plan, Activations& a, Communicator& comm,
                      StepResult& result) {
  Stream& s = *p_->stream;
  const Batch& batch = p_->upload->batch();
  RankState& state = *comm.state();
  if (p_->shard.embedding) {
    ops::Embed(s, a.hidden, batch, p_->embedding.weights().matrices[0],
               p_->model->embedding_scale());
  }
  for (size_t i = 0; i < p_->caches.size(); ++i) {
    const int layer = p_->shard.first_layer + static_cast<int>(i);
    state.Layer(layer);
    const LayerWeights weights = p_->layers->Acquire(s, layer);
    p_->hidden_states.Read(s, plan, layer, a.hidden, result);
    p_->model->Forward(s, batch, layer, weights, p_->rope.rope(), *p_->caches[i], a);
    p_->layers->Release(s, layer);
    comm.Progress();
  }
}

TensorView Stage::DrawRows(int first, int count) {
  const HeadRows& rows = p_->upload->sampled();
  const TensorView logits = Logits(rows.row + first, count);
  p_->sampler->Sample(*p_->stream, logits, rows.lane + first, rows.position + first);
  return logits;
}

void Stage::SampleRows(const PlanBatch& batch, bool drawn, StepResult& result) {
  const HeadRows& rows = p_->upload->sampled();
  std::vector<const PlanChunk*> chunks;
  for (const PlanChunk& chunk : batch.chunks()) {
    if (chunk.output() == pipeline::OUTPUT_SAMPLE) chunks.push_back(&chunk);
  }
  for (int first = 0; first < rows.count; first += kLogitRows) {
    const int count = std::min(kLogitRows, rows.count - first);
    const TensorView logits = drawn ? p_->logits.view().Rows(first, count) : DrawRows(first, count);
    int top = 0;
    for (int i = 0; i < count; ++i) top = std::max(top, chunks[first + i]->top_logprobs());
    std::vector<TopTokens> tops;
    if (top > 0) tops = p_->sampler->Top(*p_->stream, logits, top);
    const std::span<const SampledToken> sampled = p_->sampler->Sampled(*p_->stream, count);
    for (int i = 0; i < count; ++i) {
      pipeline::SampledTokenResult& out = *result.add_tokens();
      out.set_lane(chunks[first + i]->lane());
      out.set_token(sampled[i].token);
      out.set_logprob(sampled[i].logprob);
      out.set_non_finite(sampled[i].non_finite);
      for (int t = 0; t < chunks[first + i]->top_logprobs(); ++t) {
        out.add_top_tokens(tops[i].tokens[t]);
        out.add_top_logprobs(tops[i].logprobs[t]);
      }
    }
  }
}

void Stage::ScoreRows(const PlanBatch& batch, StepResult& result) {
  const HeadRows& rows = p_->upload->scored();
  std::vector<pipeline::ScoredChunk*> row_chunk;  // of each row
  std::vector<bool> row_logits;
  for (const PlanChunk& chunk : batch.chunks()) {
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
    const TensorView logits = Logits(rows.row + first, count);
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
void Stage::ReadNormed(const PlanBatch& batch, TensorView hidden, StepResult& result) {
  const int layers = p_->model->config().layers;
  if (!HiddenStates::Asks(batch, layers)) return;
  ops::Norm(*p_->stream, hidden, hidden, FinalNorm());
  p_->hidden_states.Read(*p_->stream, batch, layers, hidden, result);
}

void Stage::Trace(const PlanBatch& batch, StepResult& result) {
  for (const PlanChunk& chunk : batch.chunks()) {
    if (!chunk.trace()) continue;
    pipeline::ChunkTraceResult& trace = *result.add_traces();
    trace.set_lane(chunk.lane());
    trace.set_start(chunk.first_position());
    trace.set_tokens(chunk.token_ids_size());
    for (size_t i = 0; i < p_->caches.size(); ++i) {
      pipeline::LayerTrace& layer = *trace.add_layers();
      layer.set_layer(p_->shard.first_layer + static_cast<int>(i));
      for (const std::vector<int32_t>& kept :
           p_->caches[i]->KeptPositions(*p_->stream, chunk.lane())) {
        layer.add_heads()->mutable_positions()->Add(kept.begin(), kept.end());
      }
    }
  }
}

}  // namespace keyline
