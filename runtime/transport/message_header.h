// MessageHeader: the 40 bytes that go before every message between processes. The receiver checks
// them against what it awaits, and the length against its own bound, before it allocates anything.
//
// Used by mpi_communicator.cc. In the sender's byte order: ranks of another order differ in `magic`
// and are refused. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "absl/status/status.h"

namespace keyline {

enum class Plane : uint16_t { kBytes = 1, kTensors = 2 };

struct MessageHeader {
  static constexpr uint32_t kMagic = 0x4e4c594b;  // "KYLN"
  static constexpr uint16_t kVersion = 1;

  uint32_t magic = kMagic;
  uint16_t version = kVersion;
  Plane plane = Plane::kBytes;
  uint64_t epoch = 0;     // of the job: counts its restarts
  uint64_t sequence = 0;  // from this sender, in this plane: 0, 1, 2 ...
  uint64_t payload_bytes = 0;
  uint32_t payload_crc = 0;
  uint32_t header_crc = 0;  // of the bytes above
};
static_assert(sizeof(MessageHeader) == 40 &&
              std::has_unique_object_representations_v<MessageHeader>);

// What the receiver is ready for.
struct AwaitedMessage {
  int peer = 0;
  Plane plane = Plane::kBytes;
  uint64_t epoch = 0;
  uint64_t sequence = 0;
  uint64_t max_bytes = 0;
};

MessageHeader MakeHeader(Plane plane, uint64_t epoch, uint64_t sequence,
                         std::span<const std::byte> payload);

// DATA_LOSS names the peer, the field, what it has and what was awaited.
absl::Status CheckHeader(const MessageHeader& header, const AwaitedMessage& awaited);

// DATA_LOSS where the payload is not what the header was made for.
absl::Status CheckPayload(const MessageHeader& header, int peer,
                          std::span<const std::byte> payload);

}  // namespace keyline
