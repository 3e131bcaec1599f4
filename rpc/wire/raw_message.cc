#include "rpc/wire/raw_message.h"

#include <glog/logging.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "rpc/wire/status_to_grpc.h"
#include "runtime/text/prepare/utf8.h"

namespace keyline {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

constexpr int kMaxSliceBytes = 1 << 20;

// The first text in `fields`, which are those of a `type`, that is not UTF-8.
absl::Status FindBadText(const UnknownFieldSet& fields, const Descriptor& type,
                         const std::string& path) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const std::string name = path + known->name();
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      if (absl::Status text = CheckUtf8(field.length_delimited()); !text.ok()) {
        return FieldError(name, std::string(text.message()));
      }
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      UnknownFieldSet inner;
      if (!inner.ParseFromString(field.length_delimited())) continue;
      absl::Status status = FindBadText(inner, *known->message_type(), name + ".");
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

bool Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ByteBuffer shared(bytes);  // reading needs one that is not const
  grpc::ProtoBufferReader reader(&shared);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

}  // namespace

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  if (Parse(bytes, message)) return absl::OkStatus();
  google::protobuf::Empty fields;  // all of a message's fields are unknown to it
  if (Parse(bytes, &fields)) {
    const UnknownFieldSet& unknown = fields.GetReflection()->GetUnknownFields(fields);
    absl::Status status = FindBadText(unknown, *message->GetDescriptor(), "");
    if (!status.ok()) return status;
  }
  return absl::InvalidArgumentError(absl::StrCat("the request's ", bytes.Length(),
                                                 " bytes are not a ",
                                                 message->GetDescriptor()->full_name()));
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  grpc::ByteBuffer bytes;
  const int size = static_cast<int>(message.ByteSizeLong());
  grpc::ProtoBufferWriter writer(&bytes, kMaxSliceBytes, size);
  CHECK(message.SerializeToZeroCopyStream(&writer)) << message.GetDescriptor()->full_name();
  return bytes;
}

}  // namespace keyline
