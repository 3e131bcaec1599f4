// protected_last_recent: last_recent whose kept part is a range of the request's own tokens, for
// instance its system prompt, instead of the first few. The ring skips the range.
//
// The range counts tokens from the start of the sequence; it is capped at max_protected_fraction of
// the cache. Without a range the sinks of last_recent are kept; sinks asked for besides a range are
// kept too.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/cache/policies/eviction_policy.h"

namespace keyline {
namespace {

class ProtectedLastRecent : public EvictionPolicy {
 public:
  explicit ProtectedLastRecent(std::string name)
      : EvictionPolicy(std::move(name), kSinks | kProtect, {}) {}

  int MaxChunk(const LaneRules& rules) const override {
    return rules.length - rules.sinks - (rules.protect_end - rules.protect_begin);
  }

 protected:
  absl::Status FillRules(const LanePolicy& asked, LaneRules& rules) const override {
    const int begin = asked.protect_begin;
    const int end = asked.protect_end;
    const double fraction = asked.max_protected_fraction;
    if (begin < 0 || end < begin) {
      return absl::InvalidArgumentError(
          absl::StrCat("protected range [", begin, ", ", end, ") is not a range of tokens"));
    }
    if (!(fraction >= 0 && fraction <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("max_protected_fraction ", fraction, " is not in [0, 1]"));
    }
    const bool range = end > begin;
    if (range && begin >= rules.length) {
      return absl::InvalidArgumentError(absl::StrCat(
          "protected range [", begin, ", ", end, ") begins beyond cache_length ", rules.length));
    }
    rules.sinks = range ? asked.sinks.value_or(0) : RecentSinks(asked, rules.length);
    const int cap = static_cast<int>(fraction * rules.length);
    rules.protect_begin = std::max(begin, rules.sinks);
    rules.protect_end = std::max(rules.protect_begin, std::min({end, rules.length, begin + cap}));
    if (MaxChunk(rules) < 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "sinks ", rules.sinks, " and protected range [", begin, ", ", end,
          ") leave no slot of cache_length ", rules.length,
          " for other tokens; lower sinks or max_protected_fraction (", fraction, ")"));
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeProtectedLastRecent(std::string name) {
  return std::make_unique<ProtectedLastRecent>(std::move(name));
}

}  // namespace keyline
