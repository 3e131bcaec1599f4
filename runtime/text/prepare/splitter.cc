#include "runtime/text/prepare/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <glog/logging.h>
#include <pcre2.h>

#include <array>
#include <cstdint>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

// Of one match, not of a text: the published expressions need a few steps a character of a piece,
// and a piece may be a megabyte of spaces.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kDepthLimit = 100'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kFirstStackBytes = 32 << 10, kMaxStackBytes = 16 << 20;

std::string PcreMessage(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

void Expression::Free::operator()(void* code) const {
  pcre2_code_free(static_cast<pcre2_code*>(code));
}

absl::StatusOr<Expression> Expression::Compile(const std::string& pattern) {
  if (pattern.find("&&") != std::string::npos) {
    // Elsewhere this means the intersection of classes; here it would silently mean two characters.
    return absl::UnimplementedError(
        absl::StrCat("expression \"", pattern, "\": intersections (&&) are not supported"));
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  // MULTILINE: the expressions were written for Oniguruma, where ^ and $ always mean lines.
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("expression \"", pattern, "\", offset ", offset, ": ", PcreMessage(error)));
  }
  Expression expression;
  expression.pattern_ = pattern;
  expression.code_.reset(code);
  // Without JIT (a hardened kernel may forbid it) matching is slower, the result the same.
  if (const int rc = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); rc != 0) {
    LOG_FIRST_N(WARNING, 1) << "PCRE2 without JIT: " << PcreMessage(rc);
  }
  return expression;
}

absl::StatusOr<Expression> Expression::Literal(const std::string& text) {
  std::string pattern;
  for (const char c : text) {
    if (c == '\0') {
      pattern += "\\x00";
      continue;
    }
    if (static_cast<unsigned char>(c) < 0x80 && !absl::ascii_isalnum(c)) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return Compile(pattern);
}

Expression::Search::Search(const Expression& expression) : expression_(expression) {
  auto* code = static_cast<pcre2_code*>(expression.code_.get());
  pcre2_match_data* match_data = pcre2_match_data_create_from_pattern(code, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kFirstStackBytes, kMaxStackBytes, nullptr);
  CHECK(match_data != nullptr && context != nullptr && stack != nullptr) << "out of memory";
  pcre2_set_match_limit(context, kMatchLimit);
  pcre2_set_depth_limit(context, kDepthLimit);
  pcre2_set_heap_limit(context, kHeapLimitKib);
  pcre2_jit_stack_assign(context, nullptr, stack);
  match_data_ = match_data;
  context_ = context;
  stack_ = stack;
}

Expression::Search::~Search() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
  pcre2_jit_stack_free(static_cast<pcre2_jit_stack*>(stack_));
}

absl::StatusOr<std::optional<Expression::Search::Match>> Expression::Search::Next(
    std::string_view text, size_t from) {
  auto* match_data = static_cast<pcre2_match_data*>(match_data_);
  // NO_UTF_CHECK: the text was checked once; checking again at every match would be quadratic.
  // NOTEMPTY: an empty match cuts nothing.
  const int rc = pcre2_match(static_cast<pcre2_code*>(expression_.code_.get()),
                             reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                             PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match_data,
                             static_cast<pcre2_match_context*>(context_));
  if (rc == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (rc < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the vocabulary's expression \"", expression_.pattern_,
                     "\" cannot split this text from byte ", from, " on: ", PcreMessage(rc)));
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match_data);
  return Match{ends[0], ends[1]};
}

void Splitter::Add(Expression expression, SplitBehavior behavior, bool invert) {
  steps_.push_back({std::move(expression), behavior, invert});
}

namespace {

struct Part {
  std::string_view text;
  bool match;
};

// `text` as matches and what lies between them.
absl::Status FindParts(Expression::Search& search, bool invert, std::string_view text,
                       std::vector<Part>& parts) {
  parts.clear();
  const auto add = [&](size_t begin, size_t end, bool match) {
    if (begin < end) parts.push_back({text.substr(begin, end - begin), match != invert});
  };
  size_t done = 0;
  while (done < text.size()) {
    ASSIGN_OR_RETURN(const auto match, search.Next(text, done));
    if (!match) break;
    add(done, match->begin, false);
    add(match->begin, match->end, true);
    done = match->end;
  }
  add(done, text.size(), false);
  return absl::OkStatus();
}

// True where a part belongs to the piece of the part before it.
bool Joins(SplitBehavior behavior, const Part& before, const Part& part) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
    case SplitBehavior::kRemoved:
      return false;
    case SplitBehavior::kMergedWithPrevious:
      return part.match && !before.match;
    case SplitBehavior::kMergedWithNext:
      return before.match && !part.match;
    case SplitBehavior::kContiguous:
      return before.match == part.match;
  }
  return false;
}

}  // namespace

absl::Status Splitter::Split(std::string_view text, std::vector<std::string_view>& pieces) const {
  std::vector<std::string_view> current = {text}, next;
  std::vector<Part> parts;
  for (const Step& step : steps_) {
    Expression::Search search(step.expression);
    next.clear();
    for (const std::string_view piece : current) {
      RETURN_IF_ERROR(FindParts(search, step.invert, piece, parts));
      for (size_t i = 0; i < parts.size(); ++i) {
        const Part& part = parts[i];
        if (step.behavior == SplitBehavior::kRemoved && part.match) continue;
        if (i > 0 && Joins(step.behavior, parts[i - 1], part)) {
          next.back() = {next.back().data(), next.back().size() + part.text.size()};
        } else {
          next.push_back(part.text);
        }
      }
    }
    std::swap(current, next);
  }
  pieces.insert(pieces.end(), current.begin(), current.end());
  return absl::OkStatus();
}

}  // namespace keyline
