// Plans and results as the bytes that travel between ranks.
#pragma once

#include <google/protobuf/message_lite.h>

#include "absl/status/status.h"
#include "runtime/transport/communicator.h"

namespace keyline {

Bytes ToBytes(const google::protobuf::MessageLite& message);
// INTERNAL where the bytes are no such message: ranks of different versions.
absl::Status FromBytes(const Bytes& bytes, google::protobuf::MessageLite& message);

}  // namespace keyline
