// DecoderModel: what a family of models (Llama, Qwen3, ...) tells the rest of the system: which
// checkpoint tensors its parts are made of, and how one layer turns hidden states into hidden
// states.
//
// One family a file; a family reads like its paper. Nothing here knows about ranks, requests or
// steps. Thread: any; immutable. To add a family: write it, add one line to model_registry.cc.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/config/model_config.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

// Working memory of one pass, in the device's activation type; `tokens` rows are in use.
struct Activations {
  TensorView hidden;    // [tokens, hidden_size], the residual stream
  TensorView qkv;       // [tokens, (heads + 2 * kv_heads) * head_dim]
  TensorView attended;  // [tokens, heads * head_dim]
  TensorView mlp;       // [tokens, intermediate_size]
};

// Widths of the same.
struct ActivationWidths {
  int hidden = 0;
  int qkv = 0;
  int attended = 0;
  int mlp = 0;
};

class DecoderModel {
 public:
  explicit DecoderModel(ModelConfig config) : config_(std::move(config)) {}
  virtual ~DecoderModel() = default;

  const ModelConfig& config() const { return config_; }
  virtual ActivationWidths widths() const;

  virtual LayerSpec LayerTensors(int layer) const = 0;
  virtual LayerSpec EmbeddingTensors() const;  // matrices: {table [vocab, hidden]}
  virtual LayerSpec HeadTensors() const;       // matrices: {head [vocab, hidden]}; vectors: {norm}
  virtual float embedding_scale() const { return 1.0f; }

  // hidden <- layer(hidden). Enqueues only. `rope`: the layer's rotary table.
  virtual void Forward(Stream& s, const Batch& batch, int layer, const LayerWeights& weights,
                       const Rope& rope, KvCache& cache, Activations& a) const = 0;

 protected:
  // The attention of every layer of this configuration, without its weights.
  AttentionSpec PlainAttention(const Rope& rope) const;

 private:
  ModelConfig config_;
};

// UNIMPLEMENTED names the family and those that exist.
absl::StatusOr<std::unique_ptr<DecoderModel>> MakeModel(const ModelConfig& config);

}  // namespace keyline
