// PipelineSpec: everything that all ranks of a pipeline agree on before the first step.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/config/cache_config.h"
#include "runtime/model/decoder_model.h"
#include "runtime/pipeline/shard_plan.h"
#include "runtime/weights/weight_storage.h"

namespace keyline {

struct PipelineSpec {
  DType dtype = DType::kF32;  // of weights that are not packed, and of plain caches
  WeightFormats weights;
  CacheConfig cache;
  std::vector<int> cache_lengths;  // slots per KV head of a lane, one a layer
  int max_pass_tokens = 0;         // most tokens of one step
  int max_positions = 0;           // sequences end here, evicting cache or not
  // Most steps in flight; at 1 a lone GPU has another, ahead of its host (Coordinator::runs_ahead).
  int pipeline_depth = 1;
  std::vector<ShardRange> shards;  // one a rank

  int longest_cache() const {
    return *std::max_element(cache_lengths.begin(), cache_lengths.end());
  }
};

// What one rank needs on its device.
struct StageBytes {
  size_t weights = 0;
  size_t kv = 0;         // all lanes
  size_t workspace = 0;  // activations, logits, rotary table, operations' own; a lane on its way
  size_t total() const { return weights + kv + workspace; }
};

// The model's tensors in the formats of the spec.
LayerSpec LayerTensors(const DecoderModel& model, const PipelineSpec& spec, int layer);
LayerSpec EmbeddingTensors(const DecoderModel& model, const PipelineSpec& spec);
LayerSpec HeadTensors(const DecoderModel& model, const PipelineSpec& spec);

// What the cache of one layer looks like.
KvCacheShape CacheShape(const DecoderModel& model, const PipelineSpec& spec, int layer);

// Bytes of one layer's cache for all lanes, and of its weights: what PlanShards balances.
absl::StatusOr<std::vector<size_t>> LayerBytes(const Device& device, const DecoderModel& model,
                                               const PipelineSpec& spec);
size_t EmbeddingBytes(const Device& device, const DecoderModel& model, const PipelineSpec& spec);
size_t HeadBytes(const Device& device, const DecoderModel& model, const PipelineSpec& spec);

// The largest pass that a rank runs.
PassShape LargestPass(const DecoderModel& model, const PipelineSpec& spec, int rank);

// Before anything is allocated. REQUIRES: spec.shards is filled in.
absl::StatusOr<StageBytes> BytesOfStage(const Device& device, const DecoderModel& model,
                                        const PipelineSpec& spec, int rank);

// Bytes that one lane takes over all layers.
absl::StatusOr<size_t> LaneBytes(const DecoderModel& model, const PipelineSpec& spec);

// Rows of logits that exist at a time; more rows are computed block by block.
constexpr int kLogitRows = 64;

}  // namespace keyline
