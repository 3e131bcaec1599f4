// What a server says first: model, cache, placement, capacity. Also what `keyline plan` prints.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/wiring.h"
#include "runtime/pipeline/pipeline_spec.h"

namespace keyline {

// One rank's row.
struct PlacementRow {
  int rank = 0;
  std::string host;
  std::string device;
  ShardRange shard;
  StageBytes bytes;
  size_t free_bytes = 0;  // left on the device
};

// The screen's lines up to and including `capacity`.
absl::StatusOr<std::string> PlacementReport(const OpenedModel& opened, const PipelineSpec& spec,
                                            const std::vector<PlacementRow>& rows);

// "13.7 MiB"
std::string HumanBytes(double bytes);

}  // namespace keyline
