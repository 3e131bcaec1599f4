#include "runtime/config/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/config/fields.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

// Architectures of GGUF files and the family of ours that computes them.
struct Architecture {
  const char* name;
  const char* family;
  bool qk_norm;
};
constexpr Architecture kArchitectures[] = {
    {"llama", "llama", false},
    {"qwen3", "qwen3", true},
};

absl::StatusOr<Architecture> FindArchitecture(const GgufFile& file) {
  std::string known;
  for (const Architecture& a : kArchitectures) {
    if (file.architecture() == a.name) return a;
    absl::StrAppend(&known, known.empty() ? "" : ", ", a.name);
  }
  return absl::UnimplementedError(absl::StrCat(file.path(), ": general.architecture ",
                                               Quoted(file.architecture()),
                                               " is not supported; supported: ", known));
}

// What would change the result and is not computed.
absl::Status RefuseUnsupported(const GgufFile& file, const Fields& fields,
                               const ModelConfig& config) {
  ASSIGN_OR_RETURN(const int64_t experts, fields.Integer("expert_count", 0, 1 << 20, 0));
  if (experts > 0) {
    return fields.Unsupported(
        "expert_count", absl::StrCat("is ", experts, "; mixtures of experts are not supported"));
  }
  ASSIGN_OR_RETURN(const int64_t window,
                   fields.Integer("attention.sliding_window", 0, kMaxPositions, 0));
  if (window > 0 && window < config.max_positions) {
    return fields.Unsupported(
        "attention.sliding_window",
        absl::StrCat("is ", window, ", less than the context of ", config.max_positions,
                     "; sliding windows are not supported"));
  }
  ASSIGN_OR_RETURN(const int64_t value_length,
                   fields.Integer("attention.value_length", 1, kMaxHeadDim, config.head_dim));
  if (value_length != config.head_dim) {
    return fields.Unsupported("attention.value_length",
                              absl::StrCat("is ", value_length, "; only the key length, ",
                                           config.head_dim, ", is supported"));
  }
  if (config.rotary_dim != config.head_dim) {
    return fields.Unsupported("rope.dimension_count",
                              absl::StrCat("is ", config.rotary_dim, "; only the whole head, ",
                                           config.head_dim, ", is supported"));
  }
  for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                           "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
    const std::string bias = absl::StrCat("model.layers.0.", name, ".bias");
    if (file.Contains(bias)) {
      return absl::UnimplementedError(absl::StrCat(file.path(), ": tensor ", Quoted(bias),
                                                   ": biases are not supported in family ",
                                                   config.family));
    }
  }
  return absl::OkStatus();
}

// Llama 3's scaling comes as divisors.
absl::Status ReadDivisors(const GgufFile& file, ModelConfig& config) {
  constexpr std::string_view kDivisors = "rope_freqs.weight";
  if (!file.Contains(kDivisors)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const SourceTensor tensor, file.Find(kDivisors));
  if (tensor.shape != std::vector<int64_t>{config.rotary_dim / 2}) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor ", Quoted(kDivisors),
                                                   " must have ", config.rotary_dim / 2,
                                                   " elements in one dimension"));
  }
  std::vector<float>& divisors = config.rope.frequency_divisors;
  divisors.resize(config.rotary_dim / 2);
  RETURN_IF_ERROR(ReadRows(tensor, 0, 1, divisors.data()));
  for (const float divisor : divisors) {
    if (!(divisor > 0 && divisor <= kMaxRopeFactor)) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor ", Quoted(kDivisors),
                                                     " must hold numbers above 0 and up to ",
                                                     kMaxRopeFactor, ", got ", divisor));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadRope(const GgufFile& file, const Fields& fields, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  ASSIGN_OR_RETURN(rope.theta,
                   fields.Real("rope.freq_base", kMinRopeTheta, kMaxRopeTheta, 10000.0));
  // Files of old have only the factor, under another name even, and mean linear.
  const std::string factor_key =
      fields.Has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  ASSIGN_OR_RETURN(const std::string type,
                   fields.String("rope.scaling.type", fields.Has(factor_key) ? "linear" : "none"));
  if (type == "none") return ReadDivisors(file, config);
  ASSIGN_OR_RETURN(rope.factor, fields.Real(factor_key, 1.0, kMaxRopeFactor));
  if (type == "linear") {
    rope.kind = RopeConfig::Kind::kLinear;
  } else if (type == "yarn") {
    rope.kind = RopeConfig::Kind::kYarn;
    ASSIGN_OR_RETURN(rope.original_max_positions,
                     fields.Integer("rope.scaling.original_context_length", 1, kMaxPositions,
                                    config.max_positions));
    ASSIGN_OR_RETURN(rope.beta_fast, fields.Real("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0));
    ASSIGN_OR_RETURN(rope.beta_slow, fields.Real("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0));
    // ggml multiplies its own factor by this one.
    ASSIGN_OR_RETURN(const double extra, fields.Real("rope.scaling.attn_factor", 1e-3, 1e3, 1.0));
    rope.attention_factor = extra * (0.1 * std::log(rope.factor) + 1.0);
  } else {
    return fields.Unsupported("rope.scaling.type",
                              absl::StrCat("is ", Quoted(type), "; supported: none, linear, yarn"));
  }
  return ReadDivisors(file, config);
}

absl::Status ReadTokens(const GgufFile& file, ModelConfig& config) {
  const GgufFields fields(file, "tokenizer.ggml.");
  ASSIGN_OR_RETURN(const int64_t bos, fields.Integer("bos_token_id", 0, config.vocab_size - 1, -1));
  config.bos_token_id = static_cast<int>(bos);
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    ASSIGN_OR_RETURN(const int64_t id, fields.Integer(key, 0, config.vocab_size - 1, -1));
    auto& ids = config.eos_token_ids;
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) {
      ids.push_back(static_cast<int>(id));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const Architecture architecture, FindArchitecture(file));
  const GgufFields fields(file, file.architecture() + ".");
  ModelConfig config;
  config.family = architecture.family;
  config.qk_norm = architecture.qk_norm;
  const auto read = [&fields](const char* key, int64_t high, int& out,
                              std::optional<int64_t> fallback = std::nullopt) {
    const absl::StatusOr<int64_t> value = fields.Integer(key, 1, high, fallback);
    if (value.ok()) out = static_cast<int>(*value);
    return value.status();
  };
  RETURN_IF_ERROR(read("embedding_length", kMaxHiddenSize, config.hidden_size));
  RETURN_IF_ERROR(read("block_count", kMaxLayers, config.layers));
  RETURN_IF_ERROR(read("attention.head_count", kMaxHeads, config.heads));
  RETURN_IF_ERROR(read("attention.head_count_kv", kMaxHeads, config.kv_heads, config.heads));
  RETURN_IF_ERROR(read("attention.key_length", kMaxHeadDim, config.head_dim,
                       config.hidden_size / config.heads));
  RETURN_IF_ERROR(read("rope.dimension_count", kMaxHeadDim, config.rotary_dim, config.head_dim));
  RETURN_IF_ERROR(read("feed_forward_length", kMaxIntermediateSize, config.intermediate_size));
  ASSIGN_OR_RETURN(config.max_positions, fields.Integer("context_length", 1, kMaxPositions));
  ASSIGN_OR_RETURN(const double eps,
                   fields.Real("attention.layer_norm_rms_epsilon", kMinNormEps, kMaxNormEps));
  config.norm_eps = static_cast<float>(eps);
  RETURN_IF_ERROR(RefuseUnsupported(file, fields, config));
  RETURN_IF_ERROR(ReadRope(file, fields, config));

  // The table is the truth on the vocabulary; files also hold its size, not always the same.
  ASSIGN_OR_RETURN(const SourceTensor embedding, file.Find("model.embed_tokens.weight"));
  if (embedding.shape.size() != 2 || embedding.rows() < 1 || embedding.rows() > kMaxVocabSize) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": tensor 'token_embd.weight' must be [vocabulary, hidden] of 1 to ",
        kMaxVocabSize, " tokens"));
  }
  config.vocab_size = static_cast<int>(embedding.rows());
  config.tied_embeddings = !file.Contains("lm_head.weight");
  RETURN_IF_ERROR(ReadTokens(file, config));
  ASSIGN_OR_RETURN(config.name, GgufFields(file, "general.").String("name", ""));
  return config;
}

}  // namespace keyline
