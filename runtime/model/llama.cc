#include "runtime/model/llama.h"

#include "absl/strings/str_cat.h"
#include "kernels/ops/ops.h"

namespace keyline {

std::string LlamaModel::LayerPrefix(int layer) { return absl::StrCat("model.layers.", layer, "."); }

LayerSpec LlamaModel::LayerTensors(int layer) const {
  const ModelConfig& c = config();
  const std::string p = LayerPrefix(layer);
  const int64_t q_rows = int64_t{c.heads} * c.head_dim;
  const int64_t kv_rows = int64_t{c.kv_heads} * c.head_dim;
  const auto block = [&](const std::string& name, int64_t rows, bool bias) {
    return RowBlock{.tensor = absl::StrCat(p, name, ".weight"),
                    .rows = rows,
                    .bias = bias ? absl::StrCat(p, name, ".bias") : ""};
  };
  LayerSpec spec;
  spec.matrices.resize(4);
  spec.matrices[kQkv] = {.blocks = {block("self_attn.q_proj", q_rows, c.attention_bias),
                                    block("self_attn.k_proj", kv_rows, c.attention_bias),
                                    block("self_attn.v_proj", kv_rows, c.attention_bias)},
                         .cols = c.hidden_size};
  spec.matrices[kO] = {.blocks = {block("self_attn.o_proj", c.hidden_size, false)}, .cols = q_rows};
  spec.matrices[kGateUp] = {.blocks = {block("mlp.gate_proj", c.intermediate_size, false),
                                       block("mlp.up_proj", c.intermediate_size, false)},
                            .cols = c.hidden_size};
  spec.matrices[kDown] = {.blocks = {block("mlp.down_proj", c.hidden_size, false)},
                          .cols = c.intermediate_size};
  spec.vectors.resize(2);
  spec.vectors[kAttentionNorm] = {.tensor = p + "input_layernorm.weight", .size = c.hidden_size};
  spec.vectors[kMlpNorm] = {.tensor = p + "post_attention_layernorm.weight", .size = c.hidden_size};
  return spec;
}

AttentionSpec LlamaModel::Attention(const LayerWeights& /*weights*/, const Rope& rope) const {
  return PlainAttention(rope);
}

void LlamaModel::Forward(Stream& s, const Batch& batch, int /*layer*/, const LayerWeights& weights,
                         const Rope& rope, KvCache& cache, Activations& a) const {
  const auto& w = weights.matrices;
  const float eps = config().norm_eps;
  const RmsNorm attention_norm{weights.vectors[kAttentionNorm].as<float>(), eps};
  const RmsNorm mlp_norm{weights.vectors[kMlpNorm].as<float>(), eps};
  ops::NormMatMul(s, a.qkv, a.hidden, attention_norm, w[kQkv]);
  cache.Attend(s, batch, a.qkv, Attention(weights, rope), a.attended);
  ops::MatMulAdd(s, a.hidden, a.attended, w[kO]);
  ops::NormGatedMatMul(s, a.mlp, a.hidden, mlp_norm, w[kGateUp], Activation::kSilu);
  ops::MatMulAdd(s, a.hidden, a.mlp, w[kDown]);
}

std::unique_ptr<DecoderModel> MakeLlama(const ModelConfig& config) {
  return std::make_unique<LlamaModel>(config);
}

}  // namespace keyline
