// Shapes of well-known models, for benchmarks with random weights.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "launch/wiring.h"

namespace keyline {
namespace {

std::vector<ModelConfig> Shapes() {
  const auto shape = [](std::string family, std::string name, int layers, int hidden, int heads,
                        int kv_heads, int head_dim, int inner, int vocab, bool tied) {
    ModelConfig c;
    c.family = std::move(family);
    c.name = std::move(name);
    c.layers = layers;
    c.hidden_size = hidden;
    c.heads = heads;
    c.kv_heads = kv_heads;
    c.head_dim = head_dim;
    c.intermediate_size = inner;
    c.vocab_size = vocab;
    c.tied_embeddings = tied;
    c.max_positions = 131072;
    c.rotary_dim = head_dim;
    c.rope.theta = 500000;
    c.checkpoint_dtype = DType::kBF16;
    c.qk_norm = c.family == "qwen3";
    return c;
  };
  // Gemma's numbers without its windows, norms and embedding scale, which are a family of their
  // own.
  return {shape("llama", "gemma3-270m", 18, 640, 4, 1, 256, 2048, 262144, true),
          shape("llama", "smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, true),
          shape("llama", "llama-1b", 16, 2048, 32, 8, 64, 8192, 128256, true),
          shape("qwen3", "qwen3-4b", 36, 2560, 32, 8, 128, 9728, 151936, true),
          shape("llama", "llama-8b", 32, 4096, 32, 8, 128, 14336, 128256, false),
          shape("llama", "llama-70b", 80, 8192, 64, 8, 128, 28672, 128256, false)};
}

}  // namespace

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const ModelConfig& config : Shapes()) names.push_back(config.name);
  return names;
}

absl::StatusOr<OpenedModel> OpenShape(const std::string& shape, int positions) {
  for (ModelConfig& config : Shapes()) {
    if (config.name != shape) continue;
    config.max_positions = std::max<int64_t>(config.max_positions, positions);
    OpenedModel opened;
    opened.name = absl::StrCat(shape, " (random weights)");
    ASSIGN_OR_RETURN(opened.model, MakeModel(config));
    std::vector<LayerSpec> specs = {opened.model->EmbeddingTensors(), opened.model->HeadTensors()};
    for (int l = 0; l < config.layers; ++l) specs.push_back(opened.model->LayerTensors(l));
    opened.random = std::make_unique<RandomSource>(specs, /*seed=*/1);
    return opened;
  }
  return absl::InvalidArgumentError(absl::StrCat("--shape: unknown shape '", shape,
                                                 "'; known: ", absl::StrJoin(ShapeNames(), ", ")));
}

}  // namespace keyline
