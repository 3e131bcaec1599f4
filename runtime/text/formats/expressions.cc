#include "runtime/text/formats/expressions.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace keyline {

const char kGpt2Expression[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// Llama-3 and Qwen2 differ in how many digits go together.
constexpr char kLlama3Expression[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Expression[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Row {
  std::vector<std::string> names;
  NamedSplit split;
};

const std::vector<Row>& Rows() {
  static const auto& rows = *new std::vector<Row>{
      {{"smollm", "starcoder", "refact", "command-r"}, {{R"(\p{N})", kGpt2Expression}}},
      {{"llama-bpe", "llama3", "llama-v3"}, {{kLlama3Expression}, true, true}},
      {{"qwen2", "deepseek-r1-qwen"}, {{kQwen2Expression}}},
      {{"gpt-2", "olmo", "mpt", "phi-2"}, {{kGpt2Expression}}},
      {{"default", ""},
       {{R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Expression, R"(\p{N}+)", R"([0-9][0-9][0-9])"}}},
  };
  return rows;
}

}  // namespace

absl::StatusOr<NamedSplit> FindNamedSplit(std::string_view name) {
  std::vector<std::string> known;
  for (const Row& row : Rows()) {
    for (const std::string& candidate : row.names) {
      if (candidate == name) return row.split;
      if (!candidate.empty()) known.push_back(candidate);
    }
  }
  return absl::UnimplementedError(
      absl::StrCat("pre-tokenizer \"", absl::string_view(name.data(), name.size()),
                   "\" is not supported; these are: ", absl::StrJoin(known, ", ")));
}

}  // namespace keyline
