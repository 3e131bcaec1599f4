#include "runtime/model/decoder_model.h"

#include <cmath>

namespace keyline {

ActivationWidths DecoderModel::widths() const {
  const ModelConfig& c = config_;
  return {.hidden = c.hidden_size,
          .qkv = (c.heads + 2 * c.kv_heads) * c.head_dim,
          .attended = c.heads * c.head_dim,
          .mlp = c.intermediate_size};
}

LayerSpec DecoderModel::EmbeddingTensors() const {
  const ModelConfig& c = config_;
  LayerSpec spec;
  spec.matrices = {MatrixSpec{
      .blocks = {{.tensor = "model.embed_tokens.weight", .rows = c.vocab_size, .bias = {}}},
      .cols = c.hidden_size}};
  return spec;
}

LayerSpec DecoderModel::HeadTensors() const {
  const ModelConfig& c = config_;
  LayerSpec spec;
  spec.matrices = {MatrixSpec{
      .blocks = {{.tensor = c.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                  .rows = c.vocab_size,
                  .bias = {}}},
      .cols = c.hidden_size}};
  spec.vectors = {VectorSpec{.tensor = "model.norm.weight", .size = c.hidden_size}};
  return spec;
}

AttentionSpec DecoderModel::PlainAttention(const Rope& rope) const {
  const ModelConfig& c = config_;
  AttentionSpec spec;
  spec.heads = c.heads;
  spec.kv_heads = c.kv_heads;
  spec.head_dim = c.head_dim;
  spec.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  spec.rope = rope;
  return spec;
}

}  // namespace keyline
