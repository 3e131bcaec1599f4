// Model configurations from GGUF metadata.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/config/model_config.h"
#include "runtime/files/checkpoint.h"
#include "tests/runtime/files/gguf_bytes.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;

class GgufConfig : public ::testing::Test {
 protected:
  GgufConfig() {
    floats_.Add("token_embd.weight", {8, 20}, std::vector<float>(160));
    floats_.Add("output_norm.weight", {8}, std::vector<float>(8));
  }
  // Metadata of a tiny model of `architecture`, without `but`, with `more`.
  absl::StatusOr<ModelConfig> Load(const std::string& architecture, const std::string& but,
                                   const std::vector<std::string>& more) {
    std::vector<std::string> pairs = {Pair("general.architecture", architecture),
                                      Pair("tokenizer.ggml.bos_token_id", 1u),
                                      Pair("tokenizer.ggml.eos_token_id", 2u)};
    const std::pair<const char*, uint32_t> integers[] = {
        {"embedding_length", 8},        {"block_count", 2},          {"attention.head_count", 2},
        {"attention.head_count_kv", 1}, {"feed_forward_length", 16}, {"context_length", 128},
    };
    for (const auto& [key, value] : integers) {
      if (key != but) pairs.push_back(Pair(architecture + "." + key, value));
    }
    pairs.push_back(Pair(architecture + ".attention.layer_norm_rms_epsilon", 1e-5f));
    pairs.insert(pairs.end(), more.begin(), more.end());
    const auto checkpoint =
        OpenCheckpoint(dir_.Write("m.gguf", GgufBytes(pairs, floats_.entries, floats_.data)));
    if (!checkpoint.ok()) return checkpoint.status();
    return LoadModelConfig(*checkpoint);
  }
  std::string Refusal(const std::string& architecture, const std::string& but,
                      const std::vector<std::string>& more) {
    const auto config = Load(architecture, but, more);
    if (config.ok()) return "OK";
    std::string text = config.status().ToString();
    const size_t at = text.find(path_);
    return at == std::string::npos ? text : text.erase(at, path_.size() + 2);
  }

  const TempDir dir_;
  const std::string path_ = dir_.Path("m.gguf");
  GgufFloats floats_;
};

TEST_F(GgufConfig, ReadsALlama) {
  const auto config =
      Load("llama", "",
           {Pair("llama.rope.freq_base", 100000.0f), Pair("general.name", std::string("Tiny")),
            Pair("tokenizer.ggml.eot_token_id", 7u)});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, "llama");
  EXPECT_EQ(config->name, "Tiny");
  EXPECT_EQ(config->vocab_size, 20);
  EXPECT_EQ(config->hidden_size, 8);
  EXPECT_EQ(config->layers, 2);
  EXPECT_EQ(config->heads, 2);
  EXPECT_EQ(config->kv_heads, 1);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->rotary_dim, 4);
  EXPECT_EQ(config->intermediate_size, 16);
  EXPECT_EQ(config->max_positions, 128);
  EXPECT_EQ(config->norm_eps, 1e-5f);
  EXPECT_EQ(config->rope.kind, RopeConfig::Kind::kDefault);
  EXPECT_EQ(config->rope.theta, 100000.0);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_FALSE(config->qk_norm);
  EXPECT_EQ(config->checkpoint_dtype, DType::kF32);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2, 7));
}

TEST_F(GgufConfig, ReadsAQwen3) {
  floats_.Add("output.weight", {8, 20}, std::vector<float>(160));
  const auto config =
      Load("qwen3", "",
           {Pair("qwen3.attention.key_length", 6u), Pair("qwen3.attention.value_length", 6u)});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, "qwen3");
  EXPECT_EQ(config->head_dim, 6);
  EXPECT_EQ(config->rotary_dim, 6);
  EXPECT_TRUE(config->qk_norm);
  EXPECT_FALSE(config->tied_embeddings);
}

TEST_F(GgufConfig, ReadsRotaryScaling) {
  floats_.Add("rope_freqs.weight", {2}, {1.0f, 8.0f});
  EXPECT_THAT(Load("llama", "", {})->rope.frequency_divisors, ElementsAre(1.0f, 8.0f));
  const auto linear = Load("llama", "", {Pair("llama.rope.scale_linear", 2.0f)});
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->rope.kind, RopeConfig::Kind::kLinear);
  EXPECT_EQ(linear->rope.factor, 2.0);
  const auto yarn = Load("llama", "",
                         {Pair("llama.rope.scaling.type", std::string("yarn")),
                          Pair("llama.rope.scaling.factor", 4.0f),
                          Pair("llama.rope.scaling.original_context_length", 32u)});
  ASSERT_TRUE(yarn.ok()) << yarn.status();
  EXPECT_EQ(yarn->rope.kind, RopeConfig::Kind::kYarn);
  EXPECT_EQ(yarn->rope.original_max_positions, 32);
  EXPECT_NEAR(yarn->rope.attention_factor, 1.138629436111989, 1e-12);
}

TEST_F(GgufConfig, RefusesByName) {
  const std::string key = "llama.";
  EXPECT_EQ(
      Refusal("gemma3", "", {}),
      "UNIMPLEMENTED: general.architecture 'gemma3' is not supported; supported: llama, qwen3");
  EXPECT_EQ(Refusal("llama", "embedding_length", {}),
            "INVALID_ARGUMENT: llama.embedding_length is missing");
  EXPECT_EQ(Refusal("llama", "block_count", {Pair(key + "block_count", 0u)}),
            "INVALID_ARGUMENT: llama.block_count must be an integer from 1 to 1024, got 0");
  EXPECT_EQ(Refusal("llama", "block_count", {Pair(key + "block_count", std::string("two"))}),
            "INVALID_ARGUMENT: llama.block_count must be an integer from 1 to 1024, got 'two'");
  EXPECT_EQ(Refusal("llama", "", {Pair(key + "expert_count", 8u)}),
            "UNIMPLEMENTED: llama.expert_count is 8; mixtures of experts are not supported");
  EXPECT_EQ(Refusal("llama", "", {Pair(key + "attention.sliding_window", 24u)}),
            "UNIMPLEMENTED: llama.attention.sliding_window is 24, less than the context of 128; "
            "sliding windows are not supported");
  EXPECT_EQ(Refusal("llama", "", {Pair(key + "attention.sliding_window", 128u)}), "OK");
  EXPECT_EQ(
      Refusal("llama", "", {Pair(key + "attention.value_length", 8u)}),
      "UNIMPLEMENTED: llama.attention.value_length is 8; only the key length, 4, is supported");
  EXPECT_EQ(Refusal("llama", "", {Pair(key + "rope.dimension_count", 2u)}),
            "UNIMPLEMENTED: llama.rope.dimension_count is 2; only the whole head, 4, is supported");
  EXPECT_EQ(Refusal("llama", "",
                    {Pair(key + "rope.scaling.type", std::string("longrope")),
                     Pair(key + "rope.scaling.factor", 2.0f)}),
            "UNIMPLEMENTED: llama.rope.scaling.type is 'longrope'; supported: none, linear, yarn");
  EXPECT_EQ(
      Refusal("llama", "", {Pair("tokenizer.ggml.eot_token_id", 20u)}),
      "INVALID_ARGUMENT: tokenizer.ggml.eot_token_id must be an integer from 0 to 19, got 20");
}

TEST_F(GgufConfig, RefusesBiasesAndBadDivisors) {
  floats_.Add("rope_freqs.weight", {2}, {1.0f, 0.0f});
  EXPECT_EQ(Refusal("llama", "", {}),
            "INVALID_ARGUMENT: tensor 'rope_freqs.weight' must hold numbers above 0 and up to "
            "1e+06, got 0");
  floats_.Add("blk.0.attn_q.bias", {8}, std::vector<float>(8));
  EXPECT_EQ(Refusal("llama", "", {}),
            "UNIMPLEMENTED: tensor 'model.layers.0.self_attn.q_proj.bias': biases are not "
            "supported in family llama");
}

}  // namespace
}  // namespace keyline
