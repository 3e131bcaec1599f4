// Splitter: cuts a text where no token may cross, by the expressions of a vocabulary (its
// "pre-tokenizer"). Immutable once made; any thread.
//
// Expressions run in PCRE2 with JIT in Unicode mode. One that a text makes backtrack without end is
// stopped by a limit on steps: RESOURCE_EXHAUSTED, not a stuck server. The published ones (GPT-2,
// Llama-3, Qwen2, SmolLM) are linear here: each class they repeat is consumed by the match.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace keyline {

// A compiled regular expression.
class Expression {
 public:
  // INVALID_ARGUMENT names the expression, the place in it and what is wrong there.
  static absl::StatusOr<Expression> Compile(const std::string& pattern);
  // One that matches just this text.
  static absl::StatusOr<Expression> Literal(const std::string& text);

  // A pass over texts, with the working memory that it needs; for one thread.
  class Search {
   public:
    explicit Search(const Expression& expression);
    ~Search();
    Search(const Search&) = delete;
    Search& operator=(const Search&) = delete;

    struct Match {
      size_t begin, end;
    };
    // The first match at or after byte `from` that is not empty.
    absl::StatusOr<std::optional<Match>> Next(std::string_view text, size_t from);

   private:
    const Expression& expression_;
    void* match_data_;
    void* context_;
    void* stack_;
  };

 private:
  struct Free {
    void operator()(void* code) const;
  };
  std::string pattern_;
  std::unique_ptr<void, Free> code_;
};

// What becomes of a match (the names are those of tokenizer.json).
enum class SplitBehavior {
  kIsolated,            // a piece of its own
  kRemoved,             // dropped
  kMergedWithPrevious,  // the end of the piece before it
  kMergedWithNext,      // the beginning of the piece after it
  kContiguous,          // one piece with the matches it touches
};

class Splitter {
 public:
  // `invert`: what lies between the matches counts as the matches.
  void Add(Expression expression, SplitBehavior behavior, bool invert);
  // Appends the pieces of `text`, views into it, none empty. Each step cuts the pieces of the last.
  absl::Status Split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  struct Step {
    Expression expression;
    SplitBehavior behavior;
    bool invert;
  };
  std::vector<Step> steps_;
};

}  // namespace keyline
