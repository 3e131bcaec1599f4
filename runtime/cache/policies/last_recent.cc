// last_recent: the first `sinks` tokens and the most recent ones, as in StreamingLLM (Xiao et al.
// 2023, https://arxiv.org/abs/2309.17453), with keys at their true positions. The slots behind the
// sinks are a ring.
#include "runtime/cache/policies/eviction_policy.h"

namespace keyline {
namespace {

class LastRecent : public EvictionPolicy {
 public:
  explicit LastRecent(std::string name) : EvictionPolicy(std::move(name), kSinks, {}) {}

  int MaxChunk(const LaneRules& rules) const override { return rules.length - rules.sinks; }

 protected:
  absl::Status FillRules(const LanePolicy& asked, LaneRules& rules) const override {
    rules.sinks = RecentSinks(asked, rules.length);
    if (rules.sinks >= rules.length) {
      return absl::InvalidArgumentError(
          "cache_length 1 leaves last_recent no slot behind its sink; ask for sinks 0");
    }
    rules.protect_begin = rules.protect_end = rules.sinks;
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLastRecent(std::string name) {
  return std::make_unique<LastRecent>(std::move(name));
}

}  // namespace keyline
