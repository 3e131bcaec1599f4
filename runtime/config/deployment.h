// Reads a deployment file (configs/*.pbtxt). Schema and meaning: deployment.proto.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/config/deployment.pb.h"

namespace keyline {

// INVALID_ARGUMENT: "FILE:LINE:COLUMN: what", also for a field that the schema does not have.
// NOT_FOUND where there is no such file. Values are checked where the flags' are.
absl::StatusOr<config::Deployment> LoadDeployment(const std::string& path);

// The same from text; `path` is for messages.
absl::StatusOr<config::Deployment> ParseDeployment(std::string_view text, const std::string& path);

}  // namespace keyline
