// The H2O family: the tokens that attention has looked at most (heavy hitters), after Zhang et al.
// 2023, https://arxiv.org/abs/2306.14048. A slot's score is the attention mass it has received
// since it was written; a full cache evicts the slots of lowest score, but neither the first
// `sinks` nor the `grace` most recent tokens.
//
//   h2o           mass
//   h2o_vnorm     mass weighted by the norm of the value that it multiplied
//   qh2o          h2o, ranked against what quantisation lost of the token
//   qh2o_vnorm    both
//   h2o_original  h2o with one decision for all sequences of a batch, as in the paper's code;
//   breaks
//                 the independence of lanes on purpose, so only `keyline score` offers it
#include "absl/strings/str_cat.h"
#include "runtime/cache/policies/eviction_policy.h"

namespace keyline {
namespace {

class H2o : public EvictionPolicy {
 public:
  H2o(std::string name, const ScoreRule& rule)
      : EvictionPolicy(
            std::move(name), kSinks | kGrace | kKeepInitialFraction | kNormalizeScores | kMaxChunk,
            {.scores = true, .value_norms = rule.value_norms, .errors = rule.errors, .moves = true},
            {.by_score = true, .score = rule}) {}

  int MaxChunk(const LaneRules& rules) const override {
    return rules.length - rules.grace - rules.sinks;
  }

 protected:
  absl::Status FillRules(const LanePolicy& asked, LaneRules& rules) const override {
    rules.sinks = asked.sinks.value_or(0);
    rules.protect_begin = rules.protect_end = rules.sinks;
    rules.grace = asked.grace;
    rules.keep_initial = static_cast<int>(asked.keep_initial_fraction * rules.length);
    rules.normalize = asked.normalize_scores;
    if (MaxChunk(rules) < 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "grace ", rules.grace, " and sinks ", rules.sinks, " leave no slot of cache_length ",
          rules.length, " to evict; grace + sinks may be at most ", rules.length - 1));
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeH2o(std::string name) {
  return std::make_unique<H2o>(std::move(name), ScoreRule{});
}
std::unique_ptr<EvictionPolicy> MakeH2oVnorm(std::string name) {
  return std::make_unique<H2o>(std::move(name), ScoreRule{.value_norms = true});
}
std::unique_ptr<EvictionPolicy> MakeQh2o(std::string name) {
  return std::make_unique<H2o>(std::move(name), ScoreRule{.errors = true});
}
std::unique_ptr<EvictionPolicy> MakeQh2oVnorm(std::string name) {
  return std::make_unique<H2o>(std::move(name), ScoreRule{.value_norms = true, .errors = true});
}
std::unique_ptr<EvictionPolicy> MakeH2oOriginal(std::string name) {
  return std::make_unique<H2o>(std::move(name), ScoreRule{.shared = true});
}

}  // namespace keyline
