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

// One contiguous range per rank, in order, at least one layer each, such that the largest stage has
// as few bytes as possible. layer_bytes[l]: weights and caches of layer l. The embedding's bytes
// count for the first rank, the head's for the last. Among equals, earlier ranks take fewer layers.
// INVALID_ARGUMENT where there are more ranks than layers.
absl::StatusOr<std::vector<ShardRange>> PlanShards(const std::vector<size_t>& layer_bytes,
                                                   size_t embedding_bytes, size_t head_bytes,
                                                   int ranks);

}  // namespace keyline
