#include "launch/eval/grid.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/device/status_macros.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/cache/kv_cache.h"

namespace keyline {
namespace {

absl::StatusOr<std::vector<int>> Lengths(const EvalAxes& axes) {
  std::vector<int> lengths = axes.lengths;
  for (const std::string& text : axes.fractions) {
    ASSIGN_OR_RETURN(const double fraction, ParseFraction("--fractions", text));
    lengths.push_back(static_cast<int>(std::lround(fraction * axes.window)));
  }
  for (int length : lengths) {
    if (length >= 1 && length <= axes.window) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(axes.lengths.empty() ? "--fractions" : "--lengths", ": a cache of ", length,
                     " slots; must be within [1, ", axes.window, "], the tokens of a window"));
  }
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

// What `rules` does not read would be refused; one set of flags serves policies that differ.
LanePolicy OnlyFieldsOf(const EvictionPolicy& rules, const LanePolicy& from) {
  LanePolicy policy;
  policy.policy = rules.name();
  policy.chunk_size = from.chunk_size;
  const unsigned fields = rules.fields();
  if ((fields & kSinks) != 0) policy.sinks = from.sinks;
  if ((fields & kKeepInitialFraction) != 0) {
    policy.keep_initial_fraction = from.keep_initial_fraction;
  }
  if ((fields & kMaxChunk) != 0) policy.max_chunk = from.max_chunk;
  if ((fields & kProtect) != 0) {
    policy.protect_begin = from.protect_begin;
    policy.protect_end = from.protect_end;
    policy.max_protected_fraction = from.max_protected_fraction;
  }
  return policy;
}

}  // namespace

absl::StatusOr<double> ParseFraction(const std::string& flag, const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  double value = -1;
  double divisor = 1;
  const bool parsed = parts.size() <= 2 && absl::SimpleAtod(parts[0], &value) &&
                      (parts.size() == 1 || absl::SimpleAtod(parts[1], &divisor));
  // Not a number compares false.
  if (!parsed || !(divisor > 0) || !(value >= 0) || !(value <= divisor)) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": '", text, "' is no fraction within [0, 1]; write 1/4 or 0.25"));
  }
  return value / divisor;
}

absl::StatusOr<std::vector<EvalPoint>> EvalGrid(const EvalAxes& axes) {
  ASSIGN_OR_RETURN(const std::vector<int> lengths, Lengths(axes));
  double grace = 0;
  if (!axes.grace.empty()) {
    ASSIGN_OR_RETURN(grace, ParseFraction("--grace", axes.grace));
  }
  std::vector<EvalPoint> points;
  for (const std::string& label : axes.policies) {
    absl::string_view name = label;
    const bool normalized = absl::ConsumeSuffix(&name, "+norm");
    ASSIGN_OR_RETURN(const std::unique_ptr<EvictionPolicy> rules, MakePolicy(std::string(name)));
    if (normalized && (rules->fields() & kNormalizeScores) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--policies: ", label, ": ", rules->name(), " has no scores to normalise"));
    }
    if (rules->name() == "h2o_original") {
      return absl::InvalidArgumentError(
          "--policies: h2o_original decides for all windows of a batch together, so its price "
          "depends on the batch; `keyline score` has it");
    }
    LanePolicy policy = OnlyFieldsOf(*rules, axes.rest);
    policy.normalize_scores = normalized;
    for (const std::string& storage : axes.storages) {
      if (rules->needs().errors && storage == "plain") continue;
      for (int length : rules->needs().evicts ? lengths : std::vector<int>{axes.window}) {
        policy.cache_length = {length};
        if ((rules->fields() & kGrace) != 0) policy.grace = static_cast<int>(grace * length);
        if (!axes.rest.chunk_size.has_value()) {
          policy.chunk_size.reset();
          policy.chunk_size = DefaultChunkSize(policy, policy.cache_length, kDefaultChunkSize);
        }
        points.push_back({label, storage, policy});
      }
    }
  }
  return points;
}

}  // namespace keyline
