// dense: nothing is forgotten; a token's slot is its position. A sequence that would not fit is
// refused when it asks for a lane (ValidateLane).
#include "kernels/ops/cache_ops.h"
#include "runtime/cache/policies/eviction_policy.h"

namespace keyline {
namespace {

class Dense : public EvictionPolicy {
 public:
  explicit Dense(std::string name) : EvictionPolicy(std::move(name), kNoField, {.evicts = false}) {}

  int MaxChunk(const LaneRules& rules) const override { return rules.length; }

  void Place(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
             int number) const override {
    ops::PlaceInRing(s, out, batch, table, number);  // whose ring is never entered
  }

 protected:
  absl::Status FillRules(const LanePolicy&, LaneRules&) const override { return absl::OkStatus(); }
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeDense(std::string name) {
  return std::make_unique<Dense>(std::move(name));
}

}  // namespace keyline
