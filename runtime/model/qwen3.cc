#include "runtime/model/qwen3.h"

namespace keyline {

LayerSpec Qwen3Model::LayerTensors(int layer) const {
  LayerSpec spec = LlamaModel::LayerTensors(layer);
  const std::string p = LayerPrefix(layer);
  spec.vectors.resize(kKNorm + 1);
  spec.vectors[kQNorm] = {.tensor = p + "self_attn.q_norm.weight", .size = config().head_dim};
  spec.vectors[kKNorm] = {.tensor = p + "self_attn.k_norm.weight", .size = config().head_dim};
  return spec;
}

AttentionSpec Qwen3Model::Attention(const LayerWeights& weights, const Rope& rope) const {
  AttentionSpec spec = PlainAttention(rope);
  spec.q_norm = {weights.vectors[kQNorm].as<float>(), config().norm_eps};
  spec.k_norm = {weights.vectors[kKNorm].as<float>(), config().norm_eps};
  return spec;
}

std::unique_ptr<DecoderModel> MakeQwen3(const ModelConfig& config) {
  return std::make_unique<Qwen3Model>(config);
}

}  // namespace keyline
