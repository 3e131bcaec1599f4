#include "runtime/config/model_config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/config/fields.h"
#include "runtime/config/gguf_config.h"
#include "runtime/files/checkpoint.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

using nlohmann::json;

// Values of model_type, and the family of ours that computes them.
struct ModelType {
  const char* name;
  const char* architecture;  // of `architectures`: other heads than a language model's are refused
  const char* family;
  bool qk_norm;
  int window;  // sliding window where the file does not say; 0 = none
};
constexpr ModelType kModelTypes[] = {
    {"llama", "LlamaForCausalLM", "llama", false, 0},
    {"mistral", "MistralForCausalLM", "llama", false, 4096},
    {"qwen3", "Qwen3ForCausalLM", "qwen3", true, 0},
};

absl::StatusOr<ModelType> FindModelType(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const std::string name, fields.String("model_type"));
  std::string known;
  for (const ModelType& type : kModelTypes) {
    if (name == type.name) return type;
    absl::StrAppend(&known, known.empty() ? "" : ", ", type.name);
  }
  return fields.Unsupported("model_type",
                            absl::StrCat("is ", Quoted(name), "; supported: ", known));
}

absl::Status CheckArchitecture(const JsonFields& fields, const ModelType& type) {
  const json* const architectures = fields.Find("architectures");
  if (architectures == nullptr || *architectures == json::array({type.architecture})) {
    return absl::OkStatus();
  }
  return fields.Unsupported(
      "architectures", absl::StrCat("must be [\"", type.architecture, "\"] for model_type '",
                                    type.name, "', got ", architectures->dump().substr(0, 200)));
}

// Whether any layer sees only a window of the context.
absl::StatusOr<bool> UsesWindow(const JsonFields& fields, const ModelType& type, int layers) {
  if (const json* const kinds = fields.Find("layer_types"); kinds != nullptr) {
    if (!kinds->is_array() || static_cast<int>(kinds->size()) != layers) {
      return fields.Invalid("layer_types", absl::StrCat("must be a list of ", layers, " strings"));
    }
    bool window = false;
    for (const json& kind : *kinds) {
      if (kind == "sliding_attention") {
        window = true;
      } else if (kind != "full_attention") {
        return fields.Unsupported("layer_types", absl::StrCat("has ", kind.dump().substr(0, 80),
                                                              "; supported: \"full_attention\""));
      }
    }
    return window;
  }
  if (type.family != std::string("qwen3")) return true;
  ASSIGN_OR_RETURN(const bool use, fields.Boolean("use_sliding_window", false));
  ASSIGN_OR_RETURN(const int64_t full, fields.Integer("max_window_layers", 0, 1 << 20, 28));
  return use && full < layers;
}

absl::Status RefuseWindow(const JsonFields& fields, const ModelType& type,
                          const ModelConfig& config) {
  ASSIGN_OR_RETURN(const bool uses, UsesWindow(fields, type, config.layers));
  if (!uses) return absl::OkStatus();
  // An explicit null means none; an absent field, the model type's default.
  if (fields.IsNull("sliding_window")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t window,
                   fields.Integer("sliding_window", 1, kMaxPositions, type.window));
  if (window == 0 || window >= config.max_positions) return absl::OkStatus();
  return fields.Unsupported(
      "sliding_window",
      absl::StrCat("is ", window,
                   fields.Has("sliding_window") ? "" : " (the default of this model_type)",
                   ", less than max_position_embeddings, ", config.max_positions,
                   "; sliding windows are not supported; supported: null"));
}

// What would change the result and is not computed.
absl::Status RefuseUnsupported(const JsonFields& fields, const ModelType& type,
                               const ModelConfig& config) {
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    ASSIGN_OR_RETURN(const bool bias, fields.Boolean(key, false));
    if (bias) {
      return fields.Unsupported(
          key, absl::StrCat("is true; biases are not supported in family ", config.family));
    }
  }
  ASSIGN_OR_RETURN(const std::string activation, fields.String("hidden_act", "silu"));
  if (activation != "silu") {
    return fields.Unsupported("hidden_act",
                              absl::StrCat("is ", Quoted(activation), "; supported: silu"));
  }
  if (const json* const quantised = fields.Find("quantization_config"); quantised != nullptr) {
    return fields.Unsupported("quantization_config",
                              "is set; supported: F32, F16 and BF16 weights, or a .gguf file");
  }
  return RefuseWindow(fields, type, config);
}

absl::Status ReadYarn(const JsonFields& fields, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.kind = RopeConfig::Kind::kYarn;
  ASSIGN_OR_RETURN(
      rope.factor,
      fields.Real("factor", 1.0, kMaxRopeFactor,
                  std::max(1.0, static_cast<double>(config.max_positions) /
                                    static_cast<double>(rope.original_max_positions))));
  ASSIGN_OR_RETURN(rope.beta_fast, fields.Real("beta_fast", 1e-3, 1e6, 32.0));
  ASSIGN_OR_RETURN(rope.beta_slow, fields.Real("beta_slow", 1e-3, 1e6, 1.0));
  ASSIGN_OR_RETURN(rope.attention_factor, fields.Real("attention_factor", 1e-3, 1e3, 0.0));
  ASSIGN_OR_RETURN(const double mscale, fields.Real("mscale", 0.0, 1e3, 0.0));
  ASSIGN_OR_RETURN(const double mscale_all, fields.Real("mscale_all_dim", 0.0, 1e3, 0.0));
  if (rope.attention_factor == 0 && mscale != 0 && mscale_all != 0) {
    const double log_factor = 0.1 * std::log(rope.factor);
    rope.attention_factor = (mscale * log_factor + 1) / (mscale_all * log_factor + 1);
  }
  ASSIGN_OR_RETURN(const bool truncate, fields.Boolean("truncate", true));
  if (!truncate) return fields.Unsupported("truncate", "is false; supported: true");
  return absl::OkStatus();
}

absl::Status ReadLlama3(const JsonFields& fields, RopeConfig& rope) {
  rope.kind = RopeConfig::Kind::kLlama3;
  ASSIGN_OR_RETURN(rope.factor, fields.Real("factor", 1.0, kMaxRopeFactor));
  ASSIGN_OR_RETURN(rope.low_freq_factor, fields.Real("low_freq_factor", 1e-3, 1e6));
  ASSIGN_OR_RETURN(rope.high_freq_factor, fields.Real("high_freq_factor", 1e-3, 1e6));
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    return fields.Invalid("high_freq_factor",
                          absl::StrCat("must be above low_freq_factor, ", rope.low_freq_factor,
                                       ", got ", rope.high_freq_factor));
  }
  return absl::OkStatus();
}

// `rope_parameters` as files of transformers 5 have it, or `rope_theta` and `rope_scaling`.
absl::Status ReadRope(const JsonFields& fields, const std::string& path, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  ASSIGN_OR_RETURN(rope.theta, fields.Real("rope_theta", kMinRopeTheta, kMaxRopeTheta, 10000.0));
  ASSIGN_OR_RETURN(double rotating, fields.Real("partial_rotary_factor", 0.0, 1.0, 1.0));
  const std::string key = fields.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (const json* const object = fields.Find(key); object != nullptr) {
    if (!object->is_object()) return fields.Invalid(key, "must be an object");
    for (const auto& [name, value] : object->items()) {
      if (value.is_object()) {
        return fields.Unsupported(key, absl::StrCat("has settings of its own for ", Quoted(name),
                                                    "; supported: the same for all layers"));
      }
    }
    const JsonFields nested(path, *object, key + ".");
    ASSIGN_OR_RETURN(rope.theta,
                     nested.Real("rope_theta", kMinRopeTheta, kMaxRopeTheta, rope.theta));
    ASSIGN_OR_RETURN(rotating, nested.Real("partial_rotary_factor", 0.0, 1.0, rotating));
    const std::string type_key = nested.Has("rope_type") ? "rope_type" : "type";
    ASSIGN_OR_RETURN(const std::string type, nested.String(type_key, "default"));
    // Positions trained on: some files have them outside, and mean those where both are there.
    constexpr const char* kTrained = "original_max_position_embeddings";
    ASSIGN_OR_RETURN(rope.original_max_positions,
                     (fields.Has(kTrained) ? fields : nested)
                         .Integer(kTrained, 1, kMaxPositions, config.max_positions));
    if (type == "linear") {
      rope.kind = RopeConfig::Kind::kLinear;
      ASSIGN_OR_RETURN(rope.factor, nested.Real("factor", 1.0, kMaxRopeFactor));
    } else if (type == "llama3") {
      RETURN_IF_ERROR(ReadLlama3(nested, rope));
    } else if (type == "yarn") {
      RETURN_IF_ERROR(ReadYarn(nested, config));
    } else if (type != "default") {
      return nested.Unsupported(
          type_key,
          absl::StrCat("is ", Quoted(type), "; supported: default, linear, llama3, yarn"));
    }
  }
  config.rotary_dim = config.head_dim;
  if (rotating == 1.0) return absl::OkStatus();
  return fields.Unsupported("partial_rotary_factor",
                            absl::StrCat("is ", rotating, "; supported: 1.0"));
}

absl::StatusOr<ModelConfig> FromConfigJson(const Checkpoint& checkpoint) {
  const std::string path = checkpoint.path + "/config.json";
  const JsonFields fields(path, *checkpoint.config);
  ASSIGN_OR_RETURN(const ModelType type, FindModelType(fields));
  RETURN_IF_ERROR(CheckArchitecture(fields, type));
  ModelConfig config;
  config.family = type.family;
  config.qk_norm = type.qk_norm;
  const auto read = [&fields](const char* key, int64_t high, int& out,
                              std::optional<int64_t> fallback = std::nullopt) {
    const absl::StatusOr<int64_t> value = fields.Integer(key, 1, high, fallback);
    if (value.ok()) out = static_cast<int>(*value);
    return value.status();
  };
  RETURN_IF_ERROR(read("vocab_size", kMaxVocabSize, config.vocab_size));
  RETURN_IF_ERROR(read("hidden_size", kMaxHiddenSize, config.hidden_size));
  RETURN_IF_ERROR(read("num_hidden_layers", kMaxLayers, config.layers));
  RETURN_IF_ERROR(read("num_attention_heads", kMaxHeads, config.heads));
  RETURN_IF_ERROR(read("num_key_value_heads", kMaxHeads, config.kv_heads, config.heads));
  RETURN_IF_ERROR(
      read("head_dim", kMaxHeadDim, config.head_dim, config.hidden_size / config.heads));
  RETURN_IF_ERROR(read("intermediate_size", kMaxIntermediateSize, config.intermediate_size));
  ASSIGN_OR_RETURN(config.max_positions,
                   fields.Integer("max_position_embeddings", 1, kMaxPositions));
  ASSIGN_OR_RETURN(const double eps, fields.Real("rms_norm_eps", kMinNormEps, kMaxNormEps));
  config.norm_eps = static_cast<float>(eps);
  ASSIGN_OR_RETURN(config.tied_embeddings, fields.Boolean("tie_word_embeddings", false));
  RETURN_IF_ERROR(RefuseUnsupported(fields, type, config));
  RETURN_IF_ERROR(ReadRope(fields, path, config));

  ASSIGN_OR_RETURN(const int64_t bos, fields.Integer("bos_token_id", 0, config.vocab_size - 1, -1));
  config.bos_token_id = static_cast<int>(bos);
  if (checkpoint.generation_config != nullptr) {
    const JsonFields generation(checkpoint.path + "/generation_config.json",
                                *checkpoint.generation_config);
    ASSIGN_OR_RETURN(config.eos_token_ids, generation.TokenIds("eos_token_id", config.vocab_size));
  }
  if (config.eos_token_ids.empty()) {
    ASSIGN_OR_RETURN(config.eos_token_ids, fields.TokenIds("eos_token_id", config.vocab_size));
  }
  return config;
}

// What the fields say together.
absl::Status CheckShape(const ModelConfig& config, const std::string& path) {
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", config.heads,
                                                   " attention heads are not a multiple of ",
                                                   config.kv_heads, " key-value heads"));
  }
  if (config.head_dim < 2 || config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": heads of ", config.head_dim,
                     " dimensions (head_dim, or hidden_size over heads) do not rotate in pairs; "
                     "an even number is needed"));
  }
  return absl::OkStatus();
}

// The type that most bytes of the weights have.
DType MostlyOf(const WeightSource& weights) {
  std::map<DType, size_t> bytes;
  for (const std::string& name : weights.names()) {
    const absl::StatusOr<SourceTensor> tensor = weights.Find(name);
    if (tensor.ok()) bytes[tensor->dtype] += tensor->bytes;
  }
  const auto most = std::max_element(
      bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes.end() ? DType::kF32 : most->first;
}

}  // namespace

absl::StatusOr<ModelConfig> LoadModelConfig(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(ModelConfig config, checkpoint.gguf != nullptr
                                           ? ModelConfigFromGguf(*checkpoint.gguf)
                                           : FromConfigJson(checkpoint));
  RETURN_IF_ERROR(CheckShape(config, checkpoint.path));
  config.checkpoint_dtype = MostlyOf(*checkpoint.weights);
  if (config.name.empty()) {
    // A path may end in a slash.
    const std::filesystem::path path = std::filesystem::path(checkpoint.path).lexically_normal();
    config.name = (path.has_filename() ? path : path.parent_path()).filename().string();
  }
  return config;
}

}  // namespace keyline
