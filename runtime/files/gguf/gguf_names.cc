#include "runtime/files/gguf/gguf_names.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace keyline {
namespace {

struct Translation {
  std::string_view gguf;
  std::string_view hugging_face;
};

constexpr Translation kModelNames[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};

constexpr Translation kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

// "blk.3.attn_q.weight" -> "3", "attn_q", ".weight". Without a layer the first part is empty.
struct Parts {
  std::string_view layer;
  std::string_view stem;
  std::string_view suffix;
};

Parts Split(std::string_view name) {
  Parts parts;
  constexpr std::string_view kBlock = "blk.";
  const bool block = name.substr(0, kBlock.size()) == kBlock;
  if (block) {
    name.remove_prefix(kBlock.size());
    parts.layer = name.substr(0, name.find('.'));
    name.remove_prefix(std::min(name.size(), parts.layer.size() + 1));
  }
  const size_t dot = std::min(name.rfind('.'), name.size());
  parts.stem = name.substr(0, dot);
  parts.suffix = name.substr(dot);
  return parts;
}

}  // namespace

std::string HuggingFaceName(std::string_view gguf_name) {
  const auto [layer, stem, suffix] = Split(gguf_name);
  if (layer.empty()) {
    for (const Translation& t : kModelNames) {
      if (stem == t.gguf) return std::string(t.hugging_face).append(suffix);
    }
  } else {
    for (const Translation& t : kLayerNames) {
      if (stem == t.gguf) {
        return absl::StrCat("model.layers.", std::string(layer), ".", std::string(t.hugging_face),
                            std::string(suffix));
      }
    }
  }
  return std::string(gguf_name);
}

GgufRows RowsOf(std::string_view architecture, std::string_view gguf_name) {
  const Parts parts = Split(gguf_name);
  if (architecture != "llama" || parts.layer.empty()) return GgufRows::kPlain;
  if (parts.stem == "attn_q") return GgufRows::kQueryHeads;
  if (parts.stem == "attn_k") return GgufRows::kKeyHeads;
  return GgufRows::kPlain;
}

}  // namespace keyline
