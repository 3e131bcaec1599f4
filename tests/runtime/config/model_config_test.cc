// Model configurations: what is sound loads, what is not computed is refused by name.
#include "runtime/config/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/files/checkpoint.h"
#include "runtime/files/json_file.h"

namespace keyline {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A checkpoint whose tensors do not matter.
class NoWeights : public WeightSource {
 public:
  absl::StatusOr<SourceTensor> Find(std::string_view /*name*/) const override {
    return absl::NotFoundError("no weights");
  }
  bool Contains(std::string_view /*name*/) const override { return false; }
  std::vector<std::string> names() const override { return {}; }
  const std::string& path() const override { return path_; }

 private:
  std::string path_ = "none";
};

absl::StatusOr<ModelConfig> Load(const json& config, const json& generation = nullptr) {
  Checkpoint checkpoint;
  checkpoint.path = "models/tiny";
  checkpoint.weights = std::make_unique<NoWeights>();
  checkpoint.config = std::make_shared<const json>(config);
  if (!generation.is_null())
    checkpoint.generation_config = std::make_shared<const json>(generation);
  return LoadModelConfig(checkpoint);
}

json Llama() {
  return json::parse(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"],
      "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
      "num_key_value_heads": 2, "intermediate_size": 160, "max_position_embeddings": 4096,
      "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2})");
}

json Qwen3() {
  json config = Llama();
  config.update({{"model_type", "qwen3"}, {"architectures", {"Qwen3ForCausalLM"}}});
  return config;
}

json Mistral() {
  json config = Llama();
  config.update({{"model_type", "mistral"}, {"architectures", {"MistralForCausalLM"}}});
  return config;
}

TEST(ModelConfig, GoldenLlama) {
  const auto checkpoint = OpenCheckpoint("tests/golden/dense/llama");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto config = LoadModelConfig(*checkpoint);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, "llama");
  EXPECT_EQ(config->name, "llama");
  EXPECT_EQ(config->vocab_size, 320);
  EXPECT_EQ(config->hidden_size, 64);
  EXPECT_EQ(config->layers, 3);
  EXPECT_EQ(config->heads, 4);
  EXPECT_EQ(config->kv_heads, 2);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->rotary_dim, 16);
  EXPECT_EQ(config->intermediate_size, 160);
  EXPECT_EQ(config->max_positions, 4096);
  EXPECT_EQ(config->norm_eps, 1e-5f);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_FALSE(config->qk_norm);
  EXPECT_EQ(config->rope.kind, RopeConfig::Kind::kDefault);
  EXPECT_EQ(config->rope.theta, 10000.0);
  EXPECT_EQ(config->checkpoint_dtype, DType::kF32);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_EQ(config->bos_token_id, 1);
}

TEST(ModelConfig, GoldenLlama3AndQwen3) {
  const auto llama3 = LoadModelConfig(*OpenCheckpoint("tests/golden/dense/llama3-rope/"));
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  EXPECT_EQ(llama3->name, "llama3-rope");
  EXPECT_EQ(llama3->rope.kind, RopeConfig::Kind::kLlama3);
  EXPECT_EQ(llama3->rope.theta, 500000.0);
  EXPECT_EQ(llama3->rope.factor, 8.0);
  EXPECT_EQ(llama3->rope.low_freq_factor, 1.0);
  EXPECT_EQ(llama3->rope.high_freq_factor, 4.0);
  EXPECT_EQ(llama3->rope.original_max_positions, 64);
  const auto qwen3 = LoadModelConfig(*OpenCheckpoint("tests/golden/dense/qwen3-qknorm-tied"));
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  EXPECT_EQ(qwen3->family, "qwen3");
  EXPECT_EQ(qwen3->head_dim, 32);
  EXPECT_TRUE(qwen3->qk_norm);
  EXPECT_TRUE(qwen3->tied_embeddings);
}

TEST(ModelConfig, OldSpellingOfTheRotaryParameters) {
  json config = Llama();
  config.update(json::parse(R"({"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3",
      "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 2048}})"));
  const auto llama3 = Load(config);
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  EXPECT_EQ(llama3->rope.kind, RopeConfig::Kind::kLlama3);
  EXPECT_EQ(llama3->rope.theta, 500000.0);
  EXPECT_EQ(llama3->rope.factor, 32.0);
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};
  EXPECT_EQ(Load(config)->rope.kind, RopeConfig::Kind::kLinear);
  EXPECT_EQ(Load(config)->rope.factor, 2.5);
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(Load(config)->rope.kind, RopeConfig::Kind::kDefault);
}

TEST(ModelConfig, Yarn) {
  json config = Qwen3();
  config["rope_parameters"] = {{"rope_type", "yarn"},
                               {"rope_theta", 1e6},
                               {"factor", 4.0},
                               {"original_max_position_embeddings", 64}};
  const auto yarn = Load(config);
  ASSERT_TRUE(yarn.ok()) << yarn.status();
  EXPECT_EQ(yarn->rope.kind, RopeConfig::Kind::kYarn);
  EXPECT_EQ(yarn->rope.factor, 4.0);
  EXPECT_EQ(yarn->rope.original_max_positions, 64);
  EXPECT_EQ(yarn->rope.beta_fast, 32.0);
  EXPECT_EQ(yarn->rope.attention_factor, 0.0);
  config["rope_parameters"].erase("factor");  // then the ratio of the lengths
  EXPECT_EQ(Load(config)->rope.factor, 64.0);
  config["original_max_position_embeddings"] = 1024;  // outside, and preferred
  EXPECT_EQ(Load(config)->rope.original_max_positions, 1024);
}

TEST(ModelConfig, Defaults) {
  json config = Llama();
  config.erase("num_key_value_heads");
  config["head_dim"] = nullptr;
  const auto loaded = Load(config);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->kv_heads, 4);
  EXPECT_EQ(loaded->head_dim, 16);
  EXPECT_EQ(loaded->rope.theta, 10000.0);
  EXPECT_FALSE(loaded->tied_embeddings);
  EXPECT_EQ(loaded->name, "tiny");
}

TEST(ModelConfig, EndOfTextIds) {
  json config = Llama();
  EXPECT_THAT(Load(config, {{"eos_token_id", {7, 9}}})->eos_token_ids, ElementsAre(7, 9));
  EXPECT_THAT(Load(config, {{"eos_token_id", 5}})->eos_token_ids, ElementsAre(5));
  EXPECT_THAT(Load(config, {{"eos_token_id", nullptr}})->eos_token_ids, ElementsAre(2));
  EXPECT_THAT(Load(config, json::object())->eos_token_ids, ElementsAre(2));
  config["eos_token_id"] = json::array({3, 4});
  EXPECT_THAT(Load(config)->eos_token_ids, ElementsAre(3, 4));
  config.erase("eos_token_id");
  config["bos_token_id"] = nullptr;
  EXPECT_THAT(Load(config)->eos_token_ids, ElementsAre());
  EXPECT_EQ(Load(config)->bos_token_id, -1);
  EXPECT_EQ(Load(config, {{"eos_token_id", {1, 1000}}}).status(),
            absl::InvalidArgumentError("models/tiny/generation_config.json: eos_token_id must be "
                                       "token ids from 0 to 999, got 1000"));
}

TEST(ModelConfig, WindowsThatDoNotBiteAreNone) {
  json config = Mistral();  // positions and the default window are both 4096
  EXPECT_TRUE(Load(config).ok()) << Load(config).status();
  EXPECT_EQ(Load(config)->family, "llama");
  config["max_position_embeddings"] = 32768;
  config["sliding_window"] = nullptr;
  EXPECT_TRUE(Load(config).ok());
  config = Qwen3();
  config.update({{"sliding_window", 24}, {"use_sliding_window", false}});
  EXPECT_TRUE(Load(config).ok());
  config.update({{"use_sliding_window", true}, {"max_window_layers", 3}});
  EXPECT_TRUE(Load(config).ok());
  config["layer_types"] = {"full_attention", "full_attention", "full_attention"};
  EXPECT_TRUE(Load(config).ok());
}

struct Refusal {
  std::string name;
  json model;
  json change;  // merged into it; null erases
  absl::StatusCode code;
  std::string message;  // after "models/tiny/config.json: "
};

std::ostream& operator<<(std::ostream& out, const Refusal& r) { return out << r.name; }

std::vector<Refusal> Refusals() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kUnsupported = absl::StatusCode::kUnimplemented;
  const auto llama = [](const std::string& name, const char* change, absl::StatusCode code,
                        const std::string& message) {
    return Refusal{name, Llama(), json::parse(change), code, message};
  };
  const auto unknown = [](const std::string& name) {
    return Refusal{"Family_" + name,
                   Llama(),
                   {{"model_type", name}},
                   kUnsupported,
                   "model_type is '" + name + "'; supported: llama, mistral, qwen3"};
  };
  return {
      unknown("gemma2"),
      unknown("gemma3_text"),
      unknown("mixtral"),
      unknown("phi3"),
      unknown("olmo2"),
      unknown("qwen2"),
      unknown("qwen3_moe"),
      llama("NoModelType", R"({"model_type": null})", kInvalid, "model_type is missing"),
      llama("Architecture", R"({"architectures": ["LlamaForSequenceClassification"]})",
            kUnsupported,
            "architectures must be [\"LlamaForCausalLM\"] for model_type 'llama', got "
            "[\"LlamaForSequenceClassification\"]"),
      llama("Missing", R"({"hidden_size": null})", kInvalid, "hidden_size is missing"),
      llama("Zero", R"({"hidden_size": 0})", kInvalid,
            "hidden_size must be an integer from 1 to 65536, got 0"),
      llama("Negative", R"({"num_hidden_layers": -1})", kInvalid,
            "num_hidden_layers must be an integer from 1 to 1024, got -1"),
      llama("TooLarge", R"({"vocab_size": 4194305})", kInvalid,
            "vocab_size must be an integer from 1 to 4194304, got 4194305"),
      llama("Huge", R"({"intermediate_size": 18446744073709551615})", kInvalid,
            "intermediate_size must be an integer from 1 to 1048576, got 18446744073709551615"),
      llama("Float", R"({"num_attention_heads": 4.0})", kInvalid,
            "num_attention_heads must be an integer from 1 to 1024, got 4.0"),
      llama("Text", R"({"num_key_value_heads": "2"})", kInvalid,
            "num_key_value_heads must be an integer from 1 to 1024, got '2'"),
      llama("List", R"({"head_dim": [16]})", kInvalid,
            "head_dim must be an integer from 1 to 1024, got an array"),
      llama("ZeroEps", R"({"rms_norm_eps": 0})", kInvalid,
            "rms_norm_eps must be a number from 1e-12 to 0.1, got 0"),
      llama("Positions", R"({"max_position_embeddings": 2147483648})", kInvalid,
            "max_position_embeddings must be an integer from 1 to 1073741824, got 2147483648"),
      llama("NotBoolean", R"({"tie_word_embeddings": 1})", kInvalid,
            "tie_word_embeddings must be true or false, got 1"),
      llama("BosBeyond", R"({"bos_token_id": 1000})", kInvalid,
            "bos_token_id must be an integer from 0 to 999, got 1000"),
      llama("EosText", R"({"eos_token_id": ["</s>"]})", kInvalid,
            "eos_token_id must be token ids from 0 to 999, got '</s>'"),
      llama("AttentionBias", R"({"attention_bias": true})", kUnsupported,
            "attention_bias is true; biases are not supported in family llama"),
      llama("MlpBias", R"({"mlp_bias": true})", kUnsupported,
            "mlp_bias is true; biases are not supported in family llama"),
      llama("Activation", R"({"hidden_act": "gelu"})", kUnsupported,
            "hidden_act is 'gelu'; supported: silu"),
      llama("Quantised", R"({"quantization_config": {"quant_method": "gptq"}})", kUnsupported,
            "quantization_config is set; supported: F32, F16 and BF16 weights, or a .gguf file"),
      llama("RopeType", R"({"rope_scaling": {"type": "dynamic", "factor": 2.0}})", kUnsupported,
            "rope_scaling.type is 'dynamic'; supported: default, linear, llama3, yarn"),
      llama("RopeNewType", R"({"rope_parameters": {"rope_type": "longrope"}})", kUnsupported,
            "rope_parameters.rope_type is 'longrope'; supported: default, linear, llama3, yarn"),
      llama("RopeTheta", R"({"rope_theta": -1})", kInvalid,
            "rope_theta must be a number from 1 to 1e+15, got -1"),
      llama("RopeFactor", R"({"rope_scaling": {"type": "linear", "factor": 0}})", kInvalid,
            "rope_scaling.factor must be a number from 1 to 1e+06, got 0"),
      llama("RopeFactorMissing", R"({"rope_scaling": {"type": "linear"}})", kInvalid,
            "rope_scaling.factor is missing"),
      llama("RopeNotObject", R"({"rope_scaling": 2})", kInvalid, "rope_scaling must be an object"),
      llama("RopeOfLayers", R"({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}})",
            kUnsupported,
            "rope_parameters has settings of its own for 'full_attention'; supported: the same for "
            "all layers"),
      llama("Llama3Order",
            R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                "high_freq_factor": 4, "original_max_position_embeddings": 64}})",
            kInvalid, "rope_scaling.high_freq_factor must be above low_freq_factor, 4, got 4"),
      llama("YarnTruncate",
            R"({"rope_scaling": {"rope_type": "yarn", "factor": 4, "truncate": false}})",
            kUnsupported, "rope_scaling.truncate is false; supported: true"),
      llama("PartialRotary", R"({"partial_rotary_factor": 0.5})", kUnsupported,
            "partial_rotary_factor is 0.5; supported: 1.0"),
      {"Window",
       Mistral(),
       {{"sliding_window", 24}},
       kUnsupported,
       "sliding_window is 24, less than max_position_embeddings, 4096; sliding windows are not "
       "supported; supported: null"},
      {"WindowByDefault",
       Mistral(),
       {{"max_position_embeddings", 32768}},
       kUnsupported,
       "sliding_window is 4096 (the default of this model_type), less than "
       "max_position_embeddings, 32768; sliding windows are not supported; supported: null"},
      {"WindowOfSomeLayers",
       Qwen3(),
       {{"sliding_window", 24}, {"use_sliding_window", true}, {"max_window_layers", 2}},
       kUnsupported,
       "sliding_window is 24, less than max_position_embeddings, 4096; sliding windows are not "
       "supported; supported: null"},
      {"WindowByLayerType",
       Qwen3(),
       {{"sliding_window", 24},
        {"layer_types", {"full_attention", "sliding_attention", "full_attention"}}},
       kUnsupported,
       "sliding_window is 24, less than max_position_embeddings, 4096; sliding windows are not "
       "supported; supported: null"},
      {"UnknownLayerType",
       Qwen3(),
       {{"layer_types", {"full_attention", "linear_attention", "full_attention"}}},
       kUnsupported,
       "layer_types has \"linear_attention\"; supported: \"full_attention\""},
      {"LayerTypesOfOtherLength",
       Qwen3(),
       {{"layer_types", {"full_attention"}}},
       kInvalid,
       "layer_types must be a list of 3 strings"},
  };
}

class RefusedConfig : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusedConfig, NamesFieldValueAndWhatWouldDo) {
  json config = GetParam().model;
  config.merge_patch(GetParam().change);
  const absl::Status status = Load(config).status();
  EXPECT_EQ(status.code(), GetParam().code);
  EXPECT_EQ(std::string(status.message()), "models/tiny/config.json: " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Classes, RefusedConfig, ::testing::ValuesIn(Refusals()),
                         [](const auto& info) { return info.param.name; });

TEST(ModelConfig, HeadsMustFitTogether) {
  json config = Llama();
  config["num_key_value_heads"] = 3;
  EXPECT_EQ(Load(config).status(),
            absl::InvalidArgumentError(
                "models/tiny: 4 attention heads are not a multiple of 3 key-value heads"));
  config = Llama();
  config["head_dim"] = 15;
  EXPECT_THAT(std::string(Load(config).status().message()), HasSubstr("heads of 15 dimensions"));
  config = Llama();
  config["num_attention_heads"] = 128;  // more than hidden_size
  EXPECT_THAT(std::string(Load(config).status().message()), HasSubstr("heads of 0 dimensions"));
}

}  // namespace
}  // namespace keyline
