// Qwen3: Llama with an RMS norm on every head of q and k before RoPE, and a free head size.
// https://arxiv.org/abs/2505.09388
#pragma once

#include <memory>

#include "runtime/model/llama.h"

namespace keyline {

class Qwen3Model : public LlamaModel {
 public:
  using LlamaModel::LlamaModel;
  LayerSpec LayerTensors(int layer) const override;

 protected:
  AttentionSpec Attention(const LayerWeights& weights, const Rope& rope) const override;

 private:
  enum Vector { kQNorm = LlamaModel::kFamilyVectors, kKNorm };
};

std::unique_ptr<DecoderModel> MakeQwen3(const ModelConfig& config);

}  // namespace keyline
