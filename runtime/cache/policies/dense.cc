// dense: nothing is forgotten; a token's slot is its position, and the ring is never entered. A
// sequence that would not fit is refused when it asks for a lane (ValidateLane).
#include "runtime/cache/policies/eviction_policy.h"

namespace keyline {
namespace {

class Dense : public EvictionPolicy {
 public:
  explicit Dense(std::string name) : EvictionPolicy(std::move(name), kNoField, {.evicts = false}) {}

  int MaxChunk(const LaneRules& rules) const override { return rules.length; }

 protected:
  absl::Status FillRules(const LanePolicy&, LaneRules&) const override { return absl::OkStatus(); }
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeDense(std::string name) {
  return std::make_unique<Dense>(std::move(name));
}

}  // namespace keyline
