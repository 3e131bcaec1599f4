// ModelConfig: the shape of a decoder-only language model, from config.json or GGUF metadata.
//
// Every number has been checked against the limits below before anything is allocated by it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"

namespace keyline {

// What a configuration may ask for at most; models that exist stay far below.
inline constexpr int kMaxVocabSize = 1 << 22;
inline constexpr int kMaxHiddenSize = 1 << 16;
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxHeads = 1024;
inline constexpr int kMaxHeadDim = 1024;
inline constexpr int kMaxIntermediateSize = 1 << 20;
inline constexpr int kMaxPositions = 1 << 30;
inline constexpr double kMinNormEps = 1e-12;
inline constexpr double kMaxNormEps = 1e-1;
inline constexpr double kMinRopeTheta = 1.0 + 1e-6;
inline constexpr double kMaxRopeTheta = 1e15;
inline constexpr double kMaxRopeFactor = 1e6;

struct RopeConfig {
  enum class Kind { kDefault, kLinear, kLlama3, kYarn };
  Kind kind = Kind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  // llama3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_positions = 0;
  // yarn
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double attention_factor = 0.0;  // 0: computed from factor
  // Explicit divisors of the frequencies (GGUF's rope_freqs.weight), [rotary_dim / 2], or empty.
  std::vector<float> frequency_divisors;
};

struct ModelConfig {
  std::string family;  // key of runtime/model/model_registry.cc: "llama", "qwen3", ...
  std::string name;    // for people
  int vocab_size = 0;
  int hidden_size = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  int64_t max_positions = 0;
  float norm_eps = 1e-5f;
  bool tied_embeddings = false;
  bool qk_norm = false;         // per-head RMS norm of q and k before RoPE
  bool attention_bias = false;  // biases on q, k and v
  int rotary_dim = 0;           // leading dimensions of a head that rotate
  RopeConfig rope;
  DType checkpoint_dtype = DType::kF32;  // of most weights; block types for quantised files
  std::vector<int> eos_token_ids;
  int bos_token_id = -1;  // -1: none
};

struct Checkpoint;

// Reads config.json (and generation_config.json) or GGUF metadata of an open checkpoint.
// INVALID_ARGUMENT names file, field, value and limit; UNIMPLEMENTED names the feature that keyline
// does not have (a model is refused rather than computed wrongly) and what would work.
absl::StatusOr<ModelConfig> LoadModelConfig(const Checkpoint& checkpoint);

}  // namespace keyline
