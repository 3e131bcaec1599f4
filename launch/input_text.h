// Text that the user names on the command line.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace keyline {

// A whole file, or standard input for "-". At most 64 MiB. NOT_FOUND, INVALID_ARGUMENT name the
// path.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

}  // namespace keyline
