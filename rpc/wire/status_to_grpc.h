// absl::Status to grpc::Status: the same numbers and message; payloads become the details of a
// google.rpc.Status. Used by rpc/server alone; here is all that it knows of error details.
#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace keyline {

grpc::Status StatusToGrpc(const absl::Status& status);

// INVALID_ARGUMENT "field: what" with google.rpc.BadRequest.
absl::Status FieldError(const std::string& field, const std::string& what);

// Adds google.rpc.RetryInfo.
void SetRetryDelay(absl::Status& status, absl::Duration delay);

}  // namespace keyline
