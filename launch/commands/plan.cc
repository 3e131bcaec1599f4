// keyline plan: placement, bytes and capacity, before a weight is loaded.

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/device/status_macros.h"
#include "launch/commands/commands.h"
#include "launch/placement_report.h"
#include "launch/wiring.h"

namespace keyline {
namespace {

absl::Status Plan(const LaunchOptions& options, bool json) {
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(options.model, NeedTokenizer::kNo));
  ASSIGN_OR_RETURN(PipelineSpec spec, MakeSpec(options, opened, {.lanes = kServeLanes}));
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(options));
  ASSIGN_OR_RETURN(const auto first, OpenDevice(DeviceOfRank(options, 0), {.threads = 1}));
  RETURN_IF_ERROR(FillShards(*first, *opened.model, ranks, spec));

  std::vector<PlacementRow> rows;
  absl::Status fits;
  size_t used_here = 0;  // ranks that share a device share its memory
  std::string previous_device;
  for (int rank = 0; rank < ranks; ++rank) {
    ASSIGN_OR_RETURN(const auto device, OpenDevice(DeviceOfRank(options, rank), {.threads = 1}));
    ASSIGN_OR_RETURN(const StageBytes bytes, BytesOfStage(*device, *opened.model, spec, rank));
    fits.Update(CheckFits(options, *device, bytes, rank));
    if (device->name() != previous_device) used_here = 0;
    previous_device = device->name();
    used_here += bytes.total();
    const size_t free = device->memory().free_bytes;
    rows.push_back({.rank = rank,
                    .host = "",
                    .device = device->name(),
                    .shard = spec.shards[rank],
                    .bytes = bytes,
                    .free_bytes = free > used_here ? free - used_here : 0});
    if (free < used_here) {
      fits.Update(CheckFits(options, *device,
                            {.weights = bytes.weights,
                             .kv = bytes.kv,
                             .workspace = used_here - bytes.weights - bytes.kv},
                            rank));
    }
  }
  if (json) {
    ASSIGN_OR_RETURN(const size_t lane_bytes, LaneBytes(*opened.model, spec));
    nlohmann::json stages = nlohmann::json::array();
    for (const PlacementRow& row : rows) {
      stages.push_back({{"rank", row.rank},
                        {"device", row.device},
                        {"first_layer", row.shard.first_layer},
                        {"layers", row.shard.layers},
                        {"embedding", row.shard.embedding},
                        {"head", row.shard.head},
                        {"weight_bytes", row.bytes.weights},
                        {"kv_bytes", row.bytes.kv},
                        {"workspace_bytes", row.bytes.workspace},
                        {"free_bytes", row.free_bytes}});
    }
    std::printf("%s\n", nlohmann::json{{"model", opened.name},
                                       {"lanes", spec.cache.lanes},
                                       {"lane_bytes", lane_bytes},
                                       {"cache_length", spec.cache_lengths},
                                       {"fits", fits.ok()},
                                       {"stages", stages}}
                            .dump()
                            .c_str());
  } else {
    ASSIGN_OR_RETURN(const std::string report, PlacementReport(opened, spec, rows));
    std::fputs(report.c_str(), stdout);
  }
  return fits;
}

}  // namespace

void AddPlan(CLI::App& app, LaunchOptions& options, Command& chosen) {
  CLI::App& sub = *app.add_subcommand("plan", "placement, bytes and capacity before loading");
  auto json = std::make_shared<bool>(false);
  AddModelOptions(sub, options);
  AddCacheOptions(sub, options);
  AddFlag(sub, "--json", *json, "print JSON");
  sub.callback(
      [&options, &chosen, json] { chosen = [&options, json] { return Plan(options, *json); }; });
}

}  // namespace keyline
