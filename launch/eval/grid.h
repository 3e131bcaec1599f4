// What `keyline eval` runs: every policy with every storage at every length that makes sense.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/config/cache_config.h"

namespace keyline {

// As given on the command line.
struct EvalAxes {
  std::vector<std::string> policies;   // names; "+norm" ranks by normalised scores
  std::vector<std::string> storages;   // names
  std::vector<std::string> fractions;  // of the window: "1/4" or "0.25"; lengths instead if empty
  std::vector<int> lengths;
  std::string grace;  // "1/4" of the cache length, for the policies that have a grace ring
  LanePolicy rest;    // everything else; what a policy does not read is left at its default
  int window = 0;     // tokens
};

// One configuration: a row of the table.
struct EvalPoint {
  std::string label;  // the policy as given
  std::string storage;
  LanePolicy policy;

  int length() const { return policy.cache_length[0]; }
};

// By policy, storage and falling length. `dense` has the window's length alone; policies that rank
// by what quantisation lost are left out for the plain storage. INVALID_ARGUMENT names the flag.
absl::StatusOr<std::vector<EvalPoint>> EvalGrid(const EvalAxes& axes);

// "1/4", "0.25", "1": within [0, 1]. INVALID_ARGUMENT names `flag`.
absl::StatusOr<double> ParseFraction(const std::string& flag, const std::string& text);

}  // namespace keyline
