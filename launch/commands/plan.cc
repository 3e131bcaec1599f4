// keyline plan: placement, bytes and capacity, before a weight is loaded.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/device/status_macros.h"
#include "kernels/ops/probe.h"
#include "launch/commands/commands.h"
#include "launch/offload/offload_report.h"
#include "launch/placement_report.h"
#include "launch/wiring.h"

namespace keyline {
namespace {

using Devices = std::vector<std::unique_ptr<Device>>;

absl::StatusOr<LinkRates> MeasureRates(Device& device) {
  LinkRates rates;
  rates.overlaps = !device.memory_is_host();
  ASSIGN_OR_RETURN(rates.link, MeasureLink(device));
  ASSIGN_OR_RETURN(const std::unique_ptr<DeviceProbe> probe, DeviceProbe::Make(device));
  rates.read = probe->ReadBandwidth();
  return rates;
}

nlohmann::json ToJson(const OpenedModel& opened, const PipelineSpec& spec, size_t lane_bytes,
                      const std::vector<PlacementRow>& rows, const std::vector<OffloadPlan>& plans,
                      bool fits) {
  nlohmann::json stages = nlohmann::json::array();
  for (size_t r = 0; r < rows.size(); ++r) {
    const PlacementRow& row = rows[r];
    std::vector<int> streamed;
    for (size_t l = 0; l < plans[r].streamed.size(); ++l) {
      if (plans[r].streamed[l]) streamed.push_back(row.shard.first_layer + static_cast<int>(l));
    }
    stages.push_back({{"rank", row.rank},
                      {"device", row.device},
                      {"first_layer", row.shard.first_layer},
                      {"layers", row.shard.layers},
                      {"embedding", row.shard.embedding},
                      {"head", row.shard.head},
                      {"weight_bytes", row.bytes.weights},
                      {"kv_bytes", row.bytes.kv},
                      {"workspace_bytes", row.bytes.workspace},
                      {"free_bytes", row.free_bytes},
                      {"streamed_layers", streamed},
                      {"slots", plans[r].slots},
                      {"step_tokens", plans[r].step_tokens}});
  }
  return {{"model", opened.name},
          {"lanes", spec.cache.lanes},
          {"lane_bytes", lane_bytes},
          {"cache_length", spec.cache_lengths},
          {"fits", fits},
          {"stages", std::move(stages)}};
}

absl::Status Plan(const LaunchOptions& options, bool json) {
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(options.model, NeedTokenizer::kNo));
  ASSIGN_OR_RETURN(PipelineSpec spec, MakeSpec(options, opened, {.lanes = kServeLanes}));
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(options));
  Devices devices;
  for (int rank = 0; rank < ranks; ++rank) {
    ASSIGN_OR_RETURN(devices.emplace_back(),
                     OpenDevice(DeviceOfRank(options, rank), {.threads = 1}));
  }
  RETURN_IF_ERROR(FillShards(*devices[0], *opened.model, ranks, spec));

  std::vector<PlacementRow> rows;
  std::vector<RankOutfit> outfits;
  std::vector<OffloadPlan> plans;
  bool streams = false;
  absl::Status fits;
  size_t used_here = 0;  // ranks that share a device share its memory
  for (int rank = 0; rank < ranks; ++rank) {
    const Device& device = *devices[rank];
    ASSIGN_OR_RETURN(const RankMemory memory, MemoryOfRank(options, device, ranks));
    OffloadPlan plan;
    absl::StatusOr<OffloadPlan> planned = PlanRank(options, device, *opened.model, spec, rank);
    if (planned.ok()) {
      plan = *std::move(planned);
    } else if (!absl::IsResourceExhausted(planned.status())) {
      return planned.status();
    } else {
      fits.Update(planned.status());
      ASSIGN_OR_RETURN(plan.device, BytesOfStage(device, *opened.model, spec, rank));
    }
    if (rank > 0 && device.name() != devices[rank - 1]->name()) used_here = 0;
    used_here += plan.device.total();
    const size_t free = device.memory().free_bytes;
    rows.push_back({.rank = rank,
                    .host = "",
                    .device = device.name(),
                    .shard = spec.shards[rank],
                    .bytes = plan.device,
                    .free_bytes = free > used_here ? free - used_here : 0});
    outfits.push_back({.device = &device, .mode = memory.mode, .limit = memory.limit, .rates = {}});
    streams |= plan.streams();
    plans.push_back(plan);
  }
  Outlook outlook;
  std::vector<Advice> advice;
  // Rates are of interest, and worth the seconds of a probe, where layers stream.
  for (int rank = 0; fits.ok() && streams && rank < ranks; ++rank) {
    if (rank > 0 && devices[rank]->name() == devices[rank - 1]->name()) {
      outfits[rank].rates = outfits[rank - 1].rates;
    } else {
      ASSIGN_OR_RETURN(outfits[rank].rates, MeasureRates(*devices[rank]));
    }
  }
  if (fits.ok()) {
    ASSIGN_OR_RETURN(outlook, Foresee(*opened.model, spec, outfits));
    advice = Advise(*opened.model, spec, outfits, outlook);
  }
  if (json) {
    ASSIGN_OR_RETURN(const size_t lane_bytes, LaneBytes(*opened.model, spec));
    nlohmann::json out = ToJson(opened, spec, lane_bytes, rows, plans, fits.ok());
    if (fits.ok()) out["offload"] = OffloadJson(outlook, outfits, advice);
    std::printf("%s\n", out.dump().c_str());
  } else {
    ASSIGN_OR_RETURN(const std::string report, PlacementReport(opened, spec, rows));
    std::fputs(report.c_str(), stdout);
    if (fits.ok())
      std::fputs(OffloadReport(outlook, outfits, spec.cache.lanes, advice).c_str(), stdout);
  }
  return fits;
}

}  // namespace

void AddPlan(CLI::App& app, LaunchOptions& options, Command& chosen) {
  auto json = std::make_shared<bool>(false);
  CLI::App& sub = AddCommand(app, "plan", "placement, bytes and capacity before loading", chosen,
                             [&options, json] { return Plan(options, *json); });
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  AddFlag(sub, "--json", *json, "print JSON");
}

}  // namespace keyline
