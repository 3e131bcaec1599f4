#include "rpc/wire/status_to_grpc.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "rpc/wire/reply_to_proto.h"

namespace keyline {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/";
// Everything of a status travels in HTTP/2 headers, and peers cap those at 8 KiB.
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxDetailsBytes = 4096;

template <typename Detail>
void SetDetail(absl::Status& status, const Detail& detail) {
  status.SetPayload(absl::StrCat(kTypePrefix, Detail::descriptor()->full_name()),
                    absl::Cord(detail.SerializeAsString()));
}

// At most `limit` bytes, ending with a whole character.
std::string FirstBytes(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  while (limit > 0 && (text[limit] & 0xC0) == 0x80) --limit;
  return std::string(text.substr(0, limit));
}

}  // namespace

grpc::Status StatusToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status wire;
  wire.set_code(static_cast<int>(status.code()));
  wire.set_message(FirstBytes(status.message(), kMaxMessageBytes));
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& value) {
    google::protobuf::Any* detail = wire.add_details();
    detail->set_type_url(std::string(type));
    detail->set_value(std::string(value));
  });
  std::string details;
  if (wire.details_size() > 0) wire.SerializeToString(&details);
  if (details.size() > kMaxDetailsBytes) details.clear();
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), wire.message(), details);
}

absl::Status FieldError(const std::string& field, const std::string& what) {
  google::rpc::BadRequest bad;
  google::rpc::BadRequest::FieldViolation* violation = bad.add_field_violations();
  violation->set_field(field);
  violation->set_description(what);
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
  SetDetail(status, bad);
  return status;
}

void SetRetryDelay(absl::Status& status, absl::Duration delay) {
  google::rpc::RetryInfo retry;
  *retry.mutable_retry_delay() = DurationToProto(delay);
  SetDetail(status, retry);
}

}  // namespace keyline
