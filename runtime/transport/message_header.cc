#include "runtime/transport/message_header.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "runtime/transport/crc32c.h"

namespace keyline {
namespace {

uint32_t HeaderCrc(const MessageHeader& header) {
  return Crc32c(std::as_bytes(std::span(&header, 1)).first(offsetof(MessageHeader, header_crc)));
}

absl::Status Refuse(int peer, const char* field, uint64_t got, const char* relation,
                    uint64_t expected) {
  return absl::DataLossError(absl::StrCat("message from rank ", peer, ": ", field, " is ", got,
                                          ", must be ", relation, expected));
}

}  // namespace

MessageHeader MakeHeader(Plane plane, uint64_t epoch, uint64_t sequence,
                         std::span<const std::byte> payload) {
  MessageHeader header{.plane = plane,
                       .epoch = epoch,
                       .sequence = sequence,
                       .payload_bytes = payload.size(),
                       .payload_crc = Crc32c(payload)};
  header.header_crc = HeaderCrc(header);
  return header;
}

absl::Status CheckHeader(const MessageHeader& header, const AwaitedMessage& awaited) {
  const auto refuse = [&](const char* field, uint64_t got, uint64_t expected) {
    return Refuse(awaited.peer, field, got, "", expected);
  };
  // The most telling first: another program, another version, damage, then what does not fit.
  if (header.magic != MessageHeader::kMagic) {
    return refuse("magic", header.magic, MessageHeader::kMagic);
  }
  if (header.version != MessageHeader::kVersion) {
    return refuse("version", header.version, MessageHeader::kVersion);
  }
  if (const uint32_t crc = HeaderCrc(header); header.header_crc != crc) {
    return refuse("header CRC", header.header_crc, crc);
  }
  if (header.epoch != awaited.epoch) return refuse("epoch", header.epoch, awaited.epoch);
  if (header.plane != awaited.plane) {
    return refuse("plane", static_cast<uint64_t>(header.plane),
                  static_cast<uint64_t>(awaited.plane));
  }
  if (header.sequence != awaited.sequence) {
    return refuse("sequence number", header.sequence, awaited.sequence);
  }
  if (header.payload_bytes > awaited.max_bytes) {
    return Refuse(awaited.peer, "length", header.payload_bytes, "at most ", awaited.max_bytes);
  }
  return absl::OkStatus();
}

absl::Status CheckPayload(const MessageHeader& header, int peer,
                          std::span<const std::byte> payload) {
  if (payload.size() != header.payload_bytes) {
    return Refuse(peer, "payload length", payload.size(), "", header.payload_bytes);
  }
  if (const uint32_t crc = Crc32c(payload); crc != header.payload_crc) {
    return Refuse(peer, "payload CRC", crc, "", header.payload_crc);
  }
  return absl::OkStatus();
}

}  // namespace keyline
