// The Llama family: Llama 2 and 3, Mistral without a window, SmolLM2. Pre-norm, gated MLP, rotary
// embedding on halves. Touvron et al. 2023, https://arxiv.org/abs/2302.13971
#pragma once

#include <memory>
#include <string>

#include "runtime/model/decoder_model.h"

namespace keyline {

class LlamaModel : public DecoderModel {
 public:
  using DecoderModel::DecoderModel;
  LayerSpec LayerTensors(int layer) const override;
  void Forward(Stream& s, const Batch& batch, int layer, const LayerWeights& weights,
               const Rope& rope, KvCache& cache, Activations& a) const override;

 protected:
  // Order of the weights in LayerTensors.
  enum Matrix { kQkv, kO, kGateUp, kDown };
  enum Vector { kAttentionNorm, kMlpNorm, kFamilyVectors };

  // Derived families add what their attention has besides (q and k norms).
  virtual AttentionSpec Attention(const LayerWeights& weights, const Rope& rope) const;
  static std::string LayerPrefix(int layer);
};

std::unique_ptr<DecoderModel> MakeLlama(const ModelConfig& config);

}  // namespace keyline
