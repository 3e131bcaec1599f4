#include "runtime/text/end_marker.h"

#include <re2/re2.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

RE2::Options Quiet() {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_max_mem(1 << 20);  // of a compiled expression
  return options;
}

absl::Status Check(const std::string& expression, const RE2& compiled) {
  if (compiled.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("'", expression, "' is no regular expression of RE2: ", compiled.error()));
}

}  // namespace

absl::Status CheckEndMarker(const std::string& expression) {
  if (expression.size() > kMaxMarkerBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the expression has ", expression.size(),
                                                   " bytes, at most ", kMaxMarkerBytes));
  }
  return Check(expression, RE2(expression, Quiet()));
}

absl::StatusOr<int> TokensToEndMarker(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                                      const std::string& expression) {
  RETURN_IF_ERROR(CheckEndMarker(expression));
  std::string text;
  std::vector<size_t> ends;  // of each token's text
  ends.reserve(prompt.size());
  for (int32_t id : prompt) {
    text += tokenizer.IsSpecial(id) ? tokenizer.TokenText(id) : tokenizer.TokenBytes(id);
    ends.push_back(text.size());
  }
  const RE2 compiled(expression, Quiet());
  re2::StringPiece match;
  if (!compiled.Match(text, 0, text.size(), RE2::UNANCHORED, &match, 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", expression, "' matches nothing in the prompt's ", prompt.size(), " tokens"));
  }
  if (match.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", expression, "' matches an empty text; name the marker's characters"));
  }
  const size_t end = match.data() + match.size() - text.data();
  return static_cast<int>(std::lower_bound(ends.begin(), ends.end(), end) - ends.begin()) + 1;
}

}  // namespace keyline
