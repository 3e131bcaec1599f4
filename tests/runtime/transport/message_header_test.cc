// What a receiver refuses before it allocates: every field of the header, damage anywhere.
#include "runtime/transport/message_header.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string_view>
#include <vector>

#include "runtime/transport/crc32c.h"

namespace keyline {
namespace {

std::span<const std::byte> AsBytes(std::string_view s) { return std::as_bytes(std::span(s)); }

const AwaitedMessage kAwaited = {
    .peer = 3, .plane = Plane::kTensors, .epoch = 2, .sequence = 9, .max_bytes = 100};

MessageHeader Awaited(std::string_view payload) {
  return MakeHeader(Plane::kTensors, /*epoch=*/2, /*sequence=*/9, AsBytes(payload));
}

TEST(Crc32cTest, KnownValues) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(AsBytes("123456789")), 0xe3069283u);        // the catalogue's check value
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32)), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(Crc32cTest, LongDataAgreesWithItsParts) {
  // Long data runs in interleaved lanes; parts of 7 bytes never do.
  std::vector<std::byte> data(20011);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * i >> 3);
  for (size_t bytes : {3071, 3072, 3073, 6144, 20011}) {
    const auto whole = std::span<const std::byte>(data).first(bytes);
    uint32_t crc = 0;
    for (size_t at = 0; at < bytes; at += 7) {
      crc = Crc32c(whole.subspan(at, std::min<size_t>(7, bytes - at)), crc);
    }
    EXPECT_EQ(Crc32c(whole), crc) << bytes << " bytes";
  }
}

TEST(Crc32cTest, ContinuesWhatCameBefore) {
  const std::string_view text = "the quick brown fox jumps over the lazy dog";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(Crc32c(AsBytes(text.substr(cut)), Crc32c(AsBytes(text.substr(0, cut)))),
              Crc32c(AsBytes(text)));
  }
}

TEST(MessageHeaderTest, TheAwaitedMessagePasses) {
  const MessageHeader header = Awaited("hello");
  EXPECT_EQ(CheckHeader(header, kAwaited), absl::OkStatus());
  EXPECT_EQ(CheckPayload(header, 3, AsBytes("hello")), absl::OkStatus());
}

struct Refusal {
  const char* name;
  std::function<MessageHeader()> header;
  const char* message;
};

// With a right header CRC: what an old, foreign or confused sender would send.
MessageHeader Sent(Plane plane, uint64_t epoch, uint64_t sequence, size_t bytes) {
  return MakeHeader(plane, epoch, sequence, std::vector<std::byte>(bytes));
}

class MessageHeaderRefusals : public ::testing::TestWithParam<Refusal> {};

TEST_P(MessageHeaderRefusals, NameTheField) {
  EXPECT_EQ(CheckHeader(GetParam().header(), kAwaited), absl::DataLossError(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, MessageHeaderRefusals,
    ::testing::Values(Refusal{"Epoch", [] { return Sent(Plane::kTensors, 1, 9, 5); },
                              "message from rank 3: epoch is 1, must be 2"},
                      Refusal{"Plane", [] { return Sent(Plane::kBytes, 2, 9, 5); },
                              "message from rank 3: plane is 1, must be 2"},
                      Refusal{"Sequence", [] { return Sent(Plane::kTensors, 2, 8, 5); },
                              "message from rank 3: sequence number is 8, must be 9"},
                      Refusal{"Length", [] { return Sent(Plane::kTensors, 2, 9, 101); },
                              "message from rank 3: length is 101, must be at most 100"},
                      Refusal{"Magic",
                              [] {
                                MessageHeader header = Awaited("hello");
                                header.magic = 1;
                                return header;
                              },
                              "message from rank 3: magic is 1, must be 1313626443"},
                      Refusal{"Version",
                              [] {
                                MessageHeader header = Awaited("hello");
                                header.version = 2;
                                return header;
                              },
                              "message from rank 3: version is 2, must be 1"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(MessageHeaderTest, EveryFlippedBitIsRefused) {
  const MessageHeader good = Awaited("hello");
  for (size_t bit = 0; bit < 8 * sizeof(good); ++bit) {
    MessageHeader bad = good;
    auto* bytes = reinterpret_cast<unsigned char*>(&bad);
    bytes[bit / 8] ^= static_cast<unsigned char>(1u << (bit % 8));
    EXPECT_EQ(CheckHeader(bad, kAwaited).code(), absl::StatusCode::kDataLoss) << "bit " << bit;
  }
}

TEST(MessageHeaderTest, ADamagedPayloadIsRefused) {
  const MessageHeader header = Awaited("hello");
  EXPECT_EQ(CheckPayload(header, 3, AsBytes("hellp")).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(CheckPayload(header, 3, AsBytes("hell")),
            absl::DataLossError("message from rank 3: payload length is 4, must be 5"));
}

}  // namespace
}  // namespace keyline
