#include "runtime/pipeline/pipeline_spec.h"

#include "kernels/device/status_macros.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/model/rope_table.h"
#include "runtime/pipeline/batch_upload.h"
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

absl::StatusOr<StageBytes> BytesOfStage(const Device& device, const DecoderModel& model,
                                        const PipelineSpec& spec, int rank) {
  const ShardRange& shard = spec.shards.at(rank);
  StageBytes bytes;
  size_t widest = 0;  // workspace that a stage's caches share; see Stage::Create
  for (int l = shard.first_layer; l < shard.first_layer + shard.layers; ++l) {
    ASSIGN_OR_RETURN(KvCacheBytes kv, KvCache::BytesFor(spec.cache, CacheShape(model, spec, l)));
    bytes.weights += LayOut(device, LayerTensors(model, spec, l), spec.dtype).bytes;
    bytes.kv += kv.per_lane * spec.cache.lanes;
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
  bytes.workspace += BatchUpload::BytesFor(spec.cache.lanes, spec.max_pass_tokens);
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
