// Normalizer: what a vocabulary's rules do to a text before it is split: a list of steps, each a
// pure function of the text. Immutable once made; any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace keyline {

class NormalizerStep {
 public:
  virtual ~NormalizerStep() = default;
  // `at_start`: nothing stands before this stretch of text. REQUIRES: text is UTF-8, not empty;
  // it stays UTF-8.
  virtual void Apply(std::string& text, bool at_start) const = 0;
};

class Normalizer {
 public:
  void Add(std::unique_ptr<NormalizerStep> step) { steps_.push_back(std::move(step)); }
  bool empty() const { return steps_.empty(); }
  std::string Apply(std::string_view text, bool at_start) const;

 private:
  std::vector<std::unique_ptr<NormalizerStep>> steps_;
};

enum class PrependWhen {
  kAlways,
  kUnlessPresent,         // the text does not begin with it
  kAtStartUnlessPresent,  // likewise, and only at the very start
};
std::unique_ptr<NormalizerStep> MakePrepend(std::string prefix, PrependWhen when);
// REQUIRES: `from` is not empty.
std::unique_ptr<NormalizerStep> MakeReplace(std::string from, std::string to);
// Unicode normalization form C.
std::unique_ptr<NormalizerStep> MakeNfc();

}  // namespace keyline
