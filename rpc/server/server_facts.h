// ServerFacts: what a server tells about itself through Control. launch fills it in once, before
// the server starts; it does not change afterwards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/config/cache_config.h"
#include "runtime/config/model_config.h"

namespace keyline {

// The layers of one rank, and what they take.
struct StageFacts {
  int rank = 0;
  std::string host;
  std::string device;  // "cpu", "cuda:1"
  int first_layer = 0;
  int layers = 0;
  bool has_embedding = false;
  bool has_head = false;
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;  // of all lanes
  int64_t workspace_bytes = 0;
};

struct ServerFacts {
  std::string version;
  ModelConfig model;
  std::string dtype;  // of activations and of weights that are not quantised: "bf16"
  int64_t weight_bytes = 0;
  CacheConfig cache;
  int64_t lane_bytes = 0;  // one lane, over all layers
  std::vector<StageFacts> stages;
};

}  // namespace keyline
