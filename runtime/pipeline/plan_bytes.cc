#include "runtime/pipeline/plan_bytes.h"

#include <glog/logging.h>

#include <limits>

#include "absl/strings/str_cat.h"

namespace keyline {

Bytes ToBytes(const google::protobuf::MessageLite& message) {
  const size_t size = message.ByteSizeLong();
  CHECK_LE(size, static_cast<size_t>(std::numeric_limits<int>::max()));
  Bytes bytes(size);
  CHECK(message.SerializeToArray(bytes.data(), static_cast<int>(size)));
  return bytes;
}

absl::Status FromBytes(const Bytes& bytes, google::protobuf::MessageLite& message) {
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InternalError(absl::StrCat("a message of ", bytes.size(), " bytes is no ",
                                            message.GetTypeName(),
                                            "; do all ranks run the same version?"));
  }
  return absl::OkStatus();
}

}  // namespace keyline
