// keyline tokenize: token ids of a text, and the other way round.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/device/status_macros.h"
#include "launch/commands/commands.h"
#include "launch/input_text.h"
#include "runtime/text/tokenizer.h"

namespace keyline {
namespace {

struct Arguments {
  std::string text;
  std::string file;
  std::string decode;
  bool no_bos = false;
  bool no_special = false;
  bool json = false;
};

absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text, int vocab_size) {
  std::vector<int32_t> ids;
  for (absl::string_view part : absl::StrSplit(text, absl::ByAnyChar(", "), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id) || id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("--decode: '", part, "' is no token id within [0, ", vocab_size, ")"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::Status Tokenize(const LaunchOptions& options, const Arguments& args) {
  if (options.model.empty()) {
    return absl::InvalidArgumentError("--model is missing");
  }
  const bool given_text = !args.text.empty();
  if ((given_text ? 1 : 0) + (args.file.empty() ? 0 : 1) + (args.decode.empty() ? 0 : 1) > 1) {
    return absl::InvalidArgumentError("give one of --text, --file and --decode");
  }
  ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(options.model));
  std::vector<int32_t> ids;
  if (!args.decode.empty()) {
    ASSIGN_OR_RETURN(ids, ParseIds(args.decode, tokenizer->vocab_size()));
    const std::string text = Decode(*tokenizer, ids, /*keep_special=*/!args.no_special);
    if (!args.json) {
      std::printf("%s\n", text.c_str());
      return absl::OkStatus();
    }
  } else {
    std::string text = args.text;
    if (!args.file.empty()) {
      ASSIGN_OR_RETURN(text, ReadTextFile(args.file));
    }
    ASSIGN_OR_RETURN(
        ids, tokenizer->Encode(text, {.add_bos = !args.no_bos, .parse_special = !args.no_special}));
  }
  if (args.json) {
    std::vector<std::string> tokens;
    for (int32_t id : ids) tokens.emplace_back(tokenizer->TokenText(id));
    const nlohmann::json out = {{"token_ids", ids}, {"tokens", tokens}};
    // A token's spelling need not be UTF-8.
    std::printf("%s\n", out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return absl::OkStatus();
  }
  for (int32_t id : ids) {
    std::printf("%6d  %s\n", id, std::string(tokenizer->TokenText(id)).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddTokenize(CLI::App& app, LaunchOptions& options, Command& chosen) {
  auto args = std::make_shared<Arguments>();
  CLI::App& sub = AddCommand(app, "tokenize", "token ids of a text, or the other way round", chosen,
                             [&options, args] { return Tokenize(options, *args); });
  AddOption(sub, "--model", options.model, "a Hugging Face directory, or one .gguf file");
  AddOption(sub, "--text", args->text, "the text");
  AddOption(sub, "--file", args->file, "the same from a file; - for standard input");
  AddOption(sub, "--decode", args->decode, "token ids separated by commas: print their text");
  AddFlag(sub, "--no-bos", args->no_bos, "put no BOS first");
  AddFlag(sub, "--no-special", args->no_special, "special tokens in the text stay text");
  AddFlag(sub, "--json", args->json, "{\"token_ids\": [...], \"tokens\": [...]}");
}

}  // namespace keyline
