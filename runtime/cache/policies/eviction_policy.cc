#include "runtime/cache/policies/eviction_policy.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/cache_ops.h"

namespace keyline {
namespace {

absl::Status OutOfRange(const char* field, double value, double lowest, double highest,
                        const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(field, " ", value, " is not in [", lowest, ", ",
                                                 highest, "]", why.empty() ? "" : ": ", why));
}

absl::Status RefuseIf(bool set, unsigned field, const EvictionPolicy& policy, const char* name) {
  if (!set || (policy.fields() & field) != 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is set, but policy '", policy.name(), "' has no such parameter"));
}

}  // namespace

int RecentSinks(const LanePolicy& asked, int length) {
  return asked.sinks.value_or(std::min(16, std::max(length / 8, 1)));
}

absl::StatusOr<LaneRules> EvictionPolicy::Rules(const LanePolicy& asked, int length) const {
  const LanePolicy defaults;
  RETURN_IF_ERROR(RefuseIf(asked.sinks.has_value(), kSinks, *this, "sinks"));
  RETURN_IF_ERROR(RefuseIf(asked.grace != defaults.grace, kGrace, *this, "grace"));
  RETURN_IF_ERROR(RefuseIf(asked.keep_initial_fraction != defaults.keep_initial_fraction,
                           kKeepInitialFraction, *this, "keep_initial_fraction"));
  RETURN_IF_ERROR(RefuseIf(asked.normalize_scores, kNormalizeScores, *this, "normalize_scores"));
  RETURN_IF_ERROR(RefuseIf(asked.max_chunk != defaults.max_chunk, kMaxChunk, *this, "max_chunk"));
  RETURN_IF_ERROR(RefuseIf(asked.protect_begin != 0 || asked.protect_end != 0, kProtect, *this,
                           "a protected range"));
  RETURN_IF_ERROR(RefuseIf(!asked.protect_until.empty(), kProtect, *this, "protect_until"));
  RETURN_IF_ERROR(RefuseIf(asked.max_protected_fraction != defaults.max_protected_fraction,
                           kProtect, *this, "max_protected_fraction"));
  if (length < 1) return absl::InvalidArgumentError(absl::StrCat("cache_length ", length, " < 1"));
  const std::string of = absl::StrCat("policy '", name_, "', cache_length ", length);
  if (asked.sinks && (*asked.sinks < 0 || *asked.sinks >= length)) {
    return OutOfRange("sinks", *asked.sinks, 0, length - 1, of);
  }
  if (asked.grace < 0 || asked.grace >= length) {
    return OutOfRange("grace", asked.grace, 0, length - 1, of);
  }
  const double fraction = asked.keep_initial_fraction;
  if (!(fraction >= 0 && fraction <= 1)) {
    return OutOfRange("keep_initial_fraction", fraction, 0, 1, "");
  }
  if (asked.max_chunk < 0) {
    return absl::InvalidArgumentError(absl::StrCat("max_chunk ", asked.max_chunk, " < 0"));
  }
  LaneRules rules;
  rules.length = length;
  rules.wants_mass = needs_.scores;
  RETURN_IF_ERROR(FillRules(asked, rules));
  return rules;
}

void EvictionPolicy::Place(Stream& s, const Placement& out, const Batch& batch,
                           const SlotTable& table, int number) const {
  if (rule_.by_score) {
    ops::PlaceByScore(s, out, batch, table, number, rule_.score);
  } else {
    ops::PlaceInRing(s, out, batch, table, number);
  }
}

void EvictionPolicy::Score(Stream& s, const SlotTable& table, const float* mass, const Batch& batch,
                           int number) const {
  if (rule_.by_score) ops::AddScores(s, table, mass, batch, number, rule_.score);
}

}  // namespace keyline
