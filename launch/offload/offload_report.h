// What streaming layers will cost and what would make it cheaper: `keyline plan`.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "runtime/model/decoder_model.h"
#include "runtime/pipeline/offload_plan.h"
#include "runtime/pipeline/pipeline_spec.h"

namespace keyline {

// Where a rank runs.
struct RankOutfit {
  const Device* device = nullptr;
  Offload mode = Offload::kAuto;
  size_t limit = 0;
  LinkRates rates;
};

// What to expect of a pipeline. Rates are of decoding with full caches, in tokens a second.
struct Outlook {
  std::vector<OffloadPlan> plans;  // one a rank
  int layers = 0;
  int streamed_layers = 0;
  size_t streamed_bytes = 0;  // over all links, each step
  double one_sequence = 0;
  double all_lanes = 0;  // all together
};

// One a rank in `outfits`; fills in the shards. RESOURCE_EXHAUSTED as PlanOffload. Pure arithmetic.
absl::StatusOr<Outlook> Foresee(const DecoderModel& model, PipelineSpec spec,
                                const std::vector<RankOutfit>& outfits);

// What would raise a rate by a twentieth at least: other cache lengths and numbers of lanes.
struct Advice {
  std::string flag;  // "--kv-cache-length 1024"
  Outlook outlook;
  bool all_lanes = false;  // which of its rates is higher
};
std::vector<Advice> Advise(const DecoderModel& model, const PipelineSpec& spec,
                           const std::vector<RankOutfit>& outfits, const Outlook& outlook);

// The lines that begin with `offload`.
std::string OffloadReport(const Outlook& outlook, const std::vector<RankOutfit>& outfits, int lanes,
                          const std::vector<Advice>& advice);
nlohmann::json OffloadJson(const Outlook& outlook, const std::vector<RankOutfit>& outfits,
                           const std::vector<Advice>& advice);

}  // namespace keyline
