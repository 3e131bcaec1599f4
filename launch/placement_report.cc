#include "launch/placement_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/device/status_macros.h"
#include "runtime/cache/kv_cache.h"

namespace keyline {
namespace {

std::string LayersOf(const ShardRange& shard) {
  return absl::StrCat(shard.embedding ? "embedding+" : "", shard.first_layer, "-",
                      shard.first_layer + shard.layers - 1, shard.head ? "+head" : "");
}

std::string Lengths(const PipelineSpec& spec) {
  const auto [least, most] =
      std::minmax_element(spec.cache_lengths.begin(), spec.cache_lengths.end());
  return *least == *most ? absl::StrCat(*most) : absl::StrCat(*least, "..", *most);
}

}  // namespace

std::string HumanBytes(double bytes) {
  if (bytes >= 10.0 * (1 << 30)) return absl::StrFormat("%.1f GiB", bytes / (1 << 30));
  return absl::StrFormat("%.1f MiB", bytes / (1 << 20));
}

absl::StatusOr<std::string> PlacementReport(const OpenedModel& opened, const PipelineSpec& spec,
                                            const std::vector<PlacementRow>& rows) {
  const ModelConfig& config = opened.model->config();
  const LanePolicy& policy = spec.cache.policy;
  ASSIGN_OR_RETURN(const size_t lane, LaneBytes(*opened.model, spec));
  size_t weights = 0;
  for (const PlacementRow& row : rows) weights += row.bytes.weights;

  std::string out =
      absl::StrFormat("model      %s  %s L=%d heads=%d/%d d=%d vocab=%d  %s  weights %s (%s)\n",
                      opened.name, config.family, config.layers, config.heads, config.kv_heads,
                      config.head_dim, config.vocab_size, std::string(Name(spec.dtype)),
                      HumanBytes(weights), std::string(Name(spec.weights.storage())));
  out += absl::StrFormat("cache      %s%s  cache_length=%s chunk=%d", policy.policy,
                         policy.normalize_scores ? " (normalised)" : "", Lengths(spec),
                         *policy.chunk_size);
  if (policy.grace > 0) out += absl::StrCat(" grace=", policy.grace);
  if (policy.sinks.has_value()) out += absl::StrCat(" sinks=", *policy.sinks);
  out += absl::StrFormat("  storage=%s  lane = %s, independent of context length\n",
                         spec.cache.storage, HumanBytes(lane));
  out += absl::StrFormat("plan       %-4s %-8s %-20s %-11s %-13s %-11s %s\n", "rank", "device",
                         "layers", "weights", absl::StrCat("kv (", spec.cache.lanes, " lanes)"),
                         "workspace", "free after");
  for (const PlacementRow& row : rows) {
    out += absl::StrFormat("           %-4d %-8s %-20s %-11s %-13s %-11s %s\n", row.rank,
                           row.device, LayersOf(row.shard), HumanBytes(row.bytes.weights),
                           HumanBytes(row.bytes.kv), HumanBytes(row.bytes.workspace),
                           HumanBytes(row.free_bytes));
  }
  // What a cache that keeps everything would take, for a sequence that uses every position.
  PipelineSpec dense = spec;
  dense.cache.policy = LanePolicy{};
  dense.cache.policy.cache_length = {spec.max_positions};
  dense.cache.enabled.clear();
  dense.cache.storage = "plain";
  dense.cache_lengths.assign(config.layers, spec.max_positions);
  ASSIGN_OR_RETURN(const size_t dense_lane, LaneBytes(*opened.model, dense));
  const int longest = *std::max_element(spec.cache_lengths.begin(), spec.cache_lengths.end());
  const int context =
      policy.policy == "dense" ? std::min(longest, spec.max_positions) : spec.max_positions;
  out += absl::StrFormat(
      "capacity   %d sequences x any context up to %d positions  |  a dense %s cache of all %d "
      "positions would need %s per sequence\n",
      spec.cache.lanes, context, std::string(Name(spec.dtype)), spec.max_positions,
      HumanBytes(dense_lane));
  return out;
}

}  // namespace keyline
