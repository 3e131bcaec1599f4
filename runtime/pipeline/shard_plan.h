// ShardPlan: which rank runs which layers. Pure arithmetic, no device, no file.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"

namespace keyline {

struct ShardRange {
  int first_layer = 0;
  int layers = 0;
  bool embedding = false;  // the first rank
  bool head = false;       // the last rank
};

// One contiguous range per rank, in order, at least one layer each, such that the stage that reads
// most in a decode step, which is the pace of all, reads as little as possible. layer_bytes[l]:
// weights and caches of layer l. The head's bytes count for the last rank; the embedding counts for
// none, since a token takes one row of it. Among equals, earlier ranks take fewer layers.
// INVALID_ARGUMENT where there are more ranks than layers.
absl::StatusOr<std::vector<ShardRange>> PlanShards(const std::vector<size_t>& layer_bytes,
                                                   size_t head_bytes, int ranks);

}  // namespace keyline
