// Names of tensors: GGUF's ("blk.3.attn_q.weight") to Hugging Face's
// ("model.layers.3.self_attn.q_proj.weight").
#pragma once

#include <string>
#include <string_view>

namespace keyline {

// A name that has no translation comes back as it is.
std::string HuggingFaceName(std::string_view gguf_name);

// Which heads a tensor's rows belong to, by its GGUF name: the llama family stores those of q and k
// for interleaved rotary pairs.
enum class GgufRows { kPlain, kQueryHeads, kKeyHeads };
GgufRows RowsOf(std::string_view architecture, std::string_view gguf_name);

}  // namespace keyline
