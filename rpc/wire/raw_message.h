// Messages from and to the bytes of a call. gRPC 1.51 answers bytes that do not parse with
// UNIMPLEMENTED and no word; so InferenceService takes its calls raw, and they are parsed here.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace keyline {

// INVALID_ARGUMENT names the field, and the offset in it, where a text is not UTF-8; or says that
// the bytes are no such message at all.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

}  // namespace keyline
