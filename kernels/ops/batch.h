// Plain data that attention-like operations read: the packed batch of a pass, rotary tables, what a
// layer's attention looks like, a cache's memory, sampling parameters.
//
// Everything that changes from step to step is behind a pointer into device memory, written by one
// copy; the host values here only size launches. Words: a token is one packed position of a pass, a
// chunk the tokens of one sequence in one pass, a lane a sequence's place in all caches, a slot one
// KV place in a lane.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/device/tensor.h"

namespace keyline {

// Tokens of one sequence in one pass. In device memory.
struct Chunk {
  int32_t lane;
  int32_t first_token;     // index of its first token in the packed batch
  int32_t tokens;          // >= 1
  int32_t first_position;  // tokens of this sequence processed before this chunk
  // 1 where policies take attention mass from this chunk. Pieces of a sequence's first chunk take
  // none (design: scores stay zero during the exact prefill).
  int32_t takes_mass;
  // Tokens of the semantic chunk (runtime/cache/chunk_plan.h) that this is or belongs to, and its
  // first position: a piece of the first chunk is smaller.
  int32_t chunk_tokens;
  int32_t chunk_position;
};

// A token id: the token that was drawn last for the lane (Batch::drawn).
inline constexpr int32_t kDrawnToken = -1;

// One pass: chunks of different lanes, packed one behind the other. A lane occurs at most once.
struct Batch {
  int tokens = 0;  // sum over chunks
  int chunks = 0;
  int max_chunk_tokens = 0;  // most tokens of one chunk
  // No cache has more slots in use when the pass has run, for the lanes of all chunks together.
  int64_t max_slots = std::numeric_limits<int64_t>::max();
  const Chunk* chunk = nullptr;          // [chunks], device
  const int32_t* token_ids = nullptr;    // [tokens], device
  const int32_t* positions = nullptr;    // [tokens], device: position in its own sequence
  const int32_t* token_chunk = nullptr;  // [tokens], device: index of the token's chunk
  const int32_t* drawn = nullptr;        // [lanes], device, of Sample; where ids are kDrawnToken
};

// Rotary embedding: angles come from float64, stored as float32 pairs (cos, sin).
struct Rope {
  const float* table = nullptr;  // [positions, rotary_dim / 2, 2], device
  int rotary_dim = 0;            // leading dimensions of a head that turn; the rest stay
  int positions = 0;
};

// An RMS norm: y = x / sqrt(mean(x^2) + eps) * weight. weight: float32 [dim], device.
struct RmsNorm {
  const float* weight = nullptr;
  float eps = 0;
};

// What attention of one layer looks like. Query head h reads KV head h / (heads / kv_heads).
struct AttentionSpec {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 0;    // on q.k, before soft-capping
  int window = 0;     // a query at p sees positions > p - window; 0 = all
  float softcap = 0;  // c * tanh(s / c) on scaled logits; 0 = none
  Rope rope;
  RmsNorm q_norm;  // per head, before RoPE; weight null = none
  RmsNorm k_norm;
};

// Sampling of one lane's next token. Greedy iff temperature == 0. Order: top_k, temperature, top_p,
// min_p. Random numbers: Philox4x32-10 keyed by (seed), counter (sequence, position).
struct SamplingParams {
  float temperature = 0;
  int32_t top_k = 0;  // 0 = all
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  uint64_t sequence = 0;
};

constexpr int kMaxTopLogProbs = 20;

// What sampling says of one row of logits.
struct SampledToken {
  int32_t token = -1;      // -1: no finite logit
  float logprob = 0;       // natural log of softmax over the whole vocabulary, temperature 1
  int32_t non_finite = 0;  // how many logits were NaN or infinite
};

// The largest pass that a stage will run: what its operations' working memory depends on.
struct PassShape {
  DType weights = DType::kF32;
  bool packed = false;  // some are blocks of integers
  int tokens = 0;
  int chunks = 0;
  int hidden = 0;  // widths of activations
  int qkv = 0;
  int attended = 0;
  int mlp = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int slots = 0;              // per lane and KV head, of the longest cache
  bool copied_slots = false;  // caches are quantised or evict by score: K and V may be copied first
  int logit_rows = 0;         // 0: no head here
  int vocab = 0;
};

enum class Activation : uint8_t { kSilu, kGeluTanh, kGelu };

}  // namespace keyline
