#include "launch/offload/offload_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/device/status_macros.h"
#include "launch/placement_report.h"
#include "launch/wiring.h"

namespace keyline {
namespace {

constexpr double kWorthIt = 1.05;
constexpr int kMostHalvings = 4;
constexpr int kLeastLength = 64;

// The slowest of the links that are used.
double LinkOf(const Outlook& outlook, const std::vector<RankOutfit>& outfits) {
  double slowest = 0;
  for (size_t r = 0; r < outfits.size(); ++r) {
    if (!outlook.plans[r].streams()) continue;
    const double link = outfits[r].rates.link;
    slowest = slowest == 0 ? link : std::min(slowest, link);
  }
  return slowest;
}

std::string Layers(const Outlook& outlook) {
  return absl::StrCat(outlook.layers - outlook.streamed_layers, " of ", outlook.layers,
                      " layers stay");
}

}  // namespace

absl::StatusOr<Outlook> Foresee(const DecoderModel& model, PipelineSpec spec,
                                const std::vector<RankOutfit>& outfits) {
  const int ranks = static_cast<int>(outfits.size());
  RETURN_IF_ERROR(FillShards(*outfits[0].device, model, ranks, spec));
  Outlook outlook;
  outlook.layers = model.config().layers;
  double one = 0;  // seconds of a step
  double all = 0;
  for (int r = 0; r < ranks; ++r) {
    const RankOutfit& outfit = outfits[r];
    ASSIGN_OR_RETURN(const StageNeeds needs, NeedsOfStage(*outfit.device, model, spec, r));
    ASSIGN_OR_RETURN(OffloadPlan plan, PlanOffload(needs, outfit.mode, outfit.limit));
    outlook.streamed_layers += plan.streamed_layers();
    outlook.streamed_bytes += plan.streamed_bytes;
    const double kv = static_cast<double>(needs.kv);
    one += StepSeconds(plan, needs, kv / spec.cache.lanes, outfit.rates);
    all += StepSeconds(plan, needs, kv, outfit.rates);
    outlook.plans.push_back(std::move(plan));
  }
  outlook.one_sequence = 1 / one;
  outlook.all_lanes = spec.cache.lanes / all;
  return outlook;
}

std::vector<Advice> Advise(const DecoderModel& model, const PipelineSpec& spec,
                           const std::vector<RankOutfit>& outfits, const Outlook& outlook) {
  std::vector<Advice> advice;
  if (outlook.streamed_layers == 0) return advice;
  // The first change that is worth it; a cache that the policy cannot work with is none.
  const auto consider = [&](const std::string& flag, const PipelineSpec& changed, bool all_lanes) {
    const absl::StatusOr<Outlook> other = Foresee(model, changed, outfits);
    if (!other.ok()) return false;
    const bool better = all_lanes ? other->all_lanes >= kWorthIt * outlook.all_lanes
                                  : other->one_sequence >= kWorthIt * outlook.one_sequence;
    if (better) advice.push_back({flag, *other, all_lanes});
    return better;
  };
  for (int halving = 1; halving <= kMostHalvings; ++halving) {
    PipelineSpec changed = spec;
    for (int& length : changed.cache_lengths) length = std::max(length >> halving, kLeastLength);
    const std::vector<int>& lengths = changed.cache_lengths;
    const auto [least, most] = std::minmax_element(lengths.begin(), lengths.end());
    if (*least != *most) break;  // one number a layer: which ones to change is not ours to say
    LanePolicy policy = spec.cache.policy;
    policy.cache_length = {*most};
    if (!ValidateLane(changed.cache, lengths, policy, 1, 1, changed.max_pass_tokens).ok()) break;
    if (consider(absl::StrCat("--kv-cache-length ", *most), changed, false)) break;
  }
  PipelineSpec changed = spec;
  for (int lanes = spec.cache.lanes / 2; lanes >= 1; lanes /= 2) {
    changed.cache.lanes = lanes;
    if (consider(absl::StrCat("--lanes ", lanes), changed, false)) break;
  }
  changed.cache.lanes = spec.cache.lanes * 2;
  changed.max_pass_tokens = spec.max_pass_tokens + spec.cache.lanes;
  consider(absl::StrCat("--lanes ", changed.cache.lanes), changed, true);
  return advice;
}

std::string OffloadReport(const Outlook& outlook, const std::vector<RankOutfit>& outfits, int lanes,
                          const std::vector<Advice>& advice) {
  if (outlook.streamed_layers == 0) return "offload    all layers stay on their devices\n";
  int slots = 0;
  int tokens = 0;
  for (const OffloadPlan& plan : outlook.plans) {
    slots = std::max(slots, plan.slots);
    if (plan.streams()) tokens = std::max(tokens, plan.step_tokens);
  }
  std::string out = absl::StrFormat(
      "offload    %s, %d stream through %d slots: %s a step over the link, which takes %.1f GB/s\n",
      Layers(outlook), outlook.streamed_layers, slots,
      HumanBytes(static_cast<double>(outlook.streamed_bytes)), LinkOf(outlook, outfits) * 1e-9);
  out += absl::StrFormat(
      "           about %.3g tok/s for 1 sequence, %.3g for %d together; a prompt takes one sweep "
      "for each %d tokens\n",
      outlook.one_sequence, outlook.all_lanes, lanes, tokens);
  for (const Advice& a : advice) {
    out += absl::StrFormat("           faster with %s: %s, about %.3g tok/s %s\n", a.flag,
                           Layers(a.outlook),
                           a.all_lanes ? a.outlook.all_lanes : a.outlook.one_sequence,
                           a.all_lanes ? "together" : "for 1 sequence");
  }
  return out;
}

nlohmann::json OffloadJson(const Outlook& outlook, const std::vector<RankOutfit>& outfits,
                           const std::vector<Advice>& advice) {
  nlohmann::json out = {{"layers", outlook.layers},
                        {"streamed_layers", outlook.streamed_layers},
                        {"streamed_bytes", outlook.streamed_bytes}};
  if (outlook.streamed_layers == 0) return out;
  out["link_bytes_per_second"] = LinkOf(outlook, outfits);
  out["tokens_per_second"] = {{"one_sequence", outlook.one_sequence},
                              {"all_lanes", outlook.all_lanes}};
  nlohmann::json faster = nlohmann::json::array();
  for (const Advice& a : advice) {
    faster.push_back({{"flag", a.flag},
                      {"streamed_layers", a.outlook.streamed_layers},
                      {"one_sequence", a.outlook.one_sequence},
                      {"all_lanes", a.outlook.all_lanes}});
  }
  out["faster"] = std::move(faster);
  return out;
}

}  // namespace keyline
