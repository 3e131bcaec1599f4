#include "runtime/pipeline/pipeline_spec.h"

#include "kernels/device/status_macros.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/model/rope_table.h"
#include "runtime/pipeline/batch_upload.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

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
    bytes.push_back(LayOut(device, model.LayerTensors(l), spec.dtype).bytes +
                    kv.per_lane * spec.cache.lanes);
  }
  return bytes;
}

size_t EmbeddingBytes(const Device& device, const DecoderModel& model, DType dtype) {
  return LayOut(device, model.EmbeddingTensors(), dtype).bytes;
}

size_t HeadBytes(const Device& device, const DecoderModel& model, DType dtype) {
  return LayOut(device, model.HeadTensors(), dtype).bytes;
}

absl::StatusOr<StageBytes> BytesOfStage(const Device& device, const DecoderModel& model,
                                        const PipelineSpec& spec, int rank) {
  const ShardRange& shard = spec.shards.at(rank);
  StageBytes bytes;
  size_t widest = 0;  // workspace that a stage's caches share; see Stage::Create
  for (int l = shard.first_layer; l < shard.first_layer + shard.layers; ++l) {
    ASSIGN_OR_RETURN(KvCacheBytes kv, KvCache::BytesFor(spec.cache, CacheShape(model, spec, l)));
    bytes.weights += LayOut(device, model.LayerTensors(l), spec.dtype).bytes;
    bytes.kv += kv.per_lane * spec.cache.lanes;
    if (kv.workspace > widest) {
      bytes.workspace += kv.workspace;
      widest = kv.workspace;
    }
  }
  if (shard.embedding) bytes.weights += EmbeddingBytes(device, model, spec.dtype);
  if (shard.head && !(shard.embedding && model.config().tied_embeddings)) {
    bytes.weights += HeadBytes(device, model, spec.dtype);
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
