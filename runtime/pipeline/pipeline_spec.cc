#include "runtime/pipeline/pipeline_spec.h"

#include <algorithm>

#include "kernels/device/status_macros.h"
#include "kernels/ops/cache_memory.h"
#include "kernels/ops/ops.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/model/rope_table.h"
#include "runtime/pipeline/batch_upload.h"
#include "runtime/sampling/sampler.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

LayerSpec LayerTensors(const DecoderModel& model, const PipelineSpec& spec, int layer) {
  return spec.weights.OfLayer(model.LayerTensors(layer));
}

LayerSpec EmbeddingTensors(const DecoderModel& model, const PipelineSpec& spec) {
  return spec.weights.OfEnd(model.EmbeddingTensors());
}

LayerSpec HeadTensors(const DecoderModel& model, const PipelineSpec& spec) {
  return spec.weights.OfEnd(model.HeadTensors());
}

KvCacheShape CacheShape(const DecoderModel& model, const PipelineSpec& spec, int layer) {
  return {.lanes = spec.cache.lanes,
          .kv_heads = model.config().kv_heads,
          .head_dim = model.config().head_dim,
          .length = spec.cache_lengths[layer],
          .max_tokens = spec.max_pass_tokens,
          .plain = spec.dtype};
}

absl::StatusOr<std::vector<size_t>> LayerBytes(const Device& device, const DecoderModel& model,
                                               const PipelineSpec& spec) {
  std::vector<size_t> bytes;
  for (int l = 0; l < model.config().layers; ++l) {
    ASSIGN_OR_RETURN(KvCacheBytes kv, KvCache::BytesFor(spec.cache, CacheShape(model, spec, l)));
    bytes.push_back(LayOut(device, LayerTensors(model, spec, l), spec.dtype).bytes +
                    kv.per_lane * spec.cache.lanes);
  }
  return bytes;
}

size_t EmbeddingBytes(const Device& device, const DecoderModel& model, const PipelineSpec& spec) {
  return LayOut(device, EmbeddingTensors(model, spec), spec.dtype).bytes;
}

size_t HeadBytes(const Device& device, const DecoderModel& model, const PipelineSpec& spec) {
  return LayOut(device, HeadTensors(model, spec), spec.dtype).bytes;
}

PassShape LargestPass(const DecoderModel& model, const PipelineSpec& spec, int rank) {
  const ShardRange& shard = spec.shards.at(rank);
  const ModelConfig& config = model.config();
  const ActivationWidths widths = model.widths();
  const auto first = spec.cache_lengths.begin() + shard.first_layer;
  std::vector<MatrixSpec> matrices = LayerTensors(model, spec, shard.first_layer).matrices;
  if (shard.head) matrices.push_back(HeadTensors(model, spec).matrices[0]);
  const bool packed = std::any_of(matrices.begin(), matrices.end(),
                                  [](const MatrixSpec& m) { return m.format.has_value(); });
  return {.weights = spec.dtype,
          .packed = packed,
          .tokens = spec.max_pass_tokens,
          .chunks = spec.cache.lanes,
          .hidden = widths.hidden,
          .qkv = widths.qkv,
          .attended = widths.attended,
          .mlp = widths.mlp,
          .heads = config.heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .slots = PhysicalSlots(*std::max_element(first, first + shard.layers)),
          .copied_slots = KvCache::CopiesSlots(spec.cache),
          .logit_rows = shard.head ? kLogitRows : 0,
          .vocab = shard.head ? config.vocab_size : 0};
}

absl::StatusOr<StageBytes> BytesOfStage(const Device& device, const DecoderModel& model,
                                        const PipelineSpec& spec, int rank) {
  const ShardRange& shard = spec.shards.at(rank);
  StageBytes bytes;
  size_t widest = 0;  // workspace that a stage's caches share; see Stage::Create
  size_t lane = 0;    // of one layer: what KvCache::SaveLane needs room for
  for (int l = shard.first_layer; l < shard.first_layer + shard.layers; ++l) {
    ASSIGN_OR_RETURN(KvCacheBytes kv, KvCache::BytesFor(spec.cache, CacheShape(model, spec, l)));
    bytes.weights += LayOut(device, LayerTensors(model, spec, l), spec.dtype).bytes;
    bytes.kv += kv.per_lane * spec.cache.lanes;
    lane = std::max(lane, kv.per_lane);
    if (kv.workspace > widest) {
      bytes.workspace += kv.workspace;
      widest = kv.workspace;
    }
  }
  if (shard.embedding) bytes.weights += EmbeddingBytes(device, model, spec);
  if (shard.head && !(shard.embedding && model.config().tied_embeddings)) {
    bytes.weights += HeadBytes(device, model, spec);
  }
  const ActivationWidths widths = model.widths();
  const size_t element = BytesOf(device.ActivationType(spec.dtype), 1);
  bytes.workspace +=
      element * spec.max_pass_tokens * (widths.hidden + widths.qkv + widths.attended + widths.mlp);
  if (shard.head) {
    bytes.workspace +=
        size_t{kLogitRows} * (sizeof(float) * model.config().vocab_size + element * widths.hidden);
  }
  bytes.workspace += RopeTable::BytesFor(model.config().rotary_dim, spec.max_positions);
  if (shard.head) bytes.workspace += Sampler::BytesFor(spec.cache.lanes, kLogitRows);
  bytes.workspace += BatchUpload::BytesFor(spec.cache.lanes, spec.max_pass_tokens, 1);
  bytes.workspace += ops::ScratchBytes(device, LargestPass(model, spec, rank)) + lane;
  return bytes;
}

absl::StatusOr<size_t> LaneBytes(const DecoderModel& model, const PipelineSpec& spec) {
  size_t bytes = 0;
  for (int l = 0; l < model.config().layers; ++l) {
    ASSIGN_OR_RETURN(KvCacheBytes kv, KvCache::BytesFor(spec.cache, CacheShape(model, spec, l)));
    bytes += kv.per_lane;
  }
  return bytes;
}

}  // namespace keyline
