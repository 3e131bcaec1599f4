#include "tests/runtime/transport/communicator_laws.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/runtime/transport/memory_device.h"

namespace keyline {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

int Next(const Communicator& c) { return (c.rank() + 1) % c.size(); }
int Previous(const Communicator& c) { return (c.rank() + c.size() - 1) % c.size(); }

Bytes Filled(size_t bytes, int value) { return Bytes(bytes, static_cast<std::byte>(value)); }

// Quicker than ==, which compares one by one; that shows under TSan.
bool Same(const Bytes& a, const Bytes& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

Bytes Number(int n) {
  Bytes bytes(sizeof(n));
  std::memcpy(bytes.data(), &n, sizeof(n));
  return bytes;
}

int NumberIn(const Bytes& bytes) {
  int n = -1;
  if (bytes.size() == sizeof(n)) std::memcpy(&n, bytes.data(), sizeof(n));
  return n;
}

// The next message from `peer`, which must come.
Bytes Receive(Communicator& comm, int peer) {
  absl::StatusOr<Bytes> message = comm.RecvBytes(peer, kPatience, "a test's message");
  EXPECT_TRUE(message.ok()) << message.status();
  return message.ok() ? *std::move(message) : Bytes();
}

// Return when all ranks have come here; by bytes or by tensors, to leave the other plane silent.
void MeetByBytes(Communicator& comm) {
  for (int peer = 0; peer < comm.size(); ++peer) comm.SendBytes(peer, {});
  for (int peer = 0; peer < comm.size(); ++peer) EXPECT_EQ(Receive(comm, peer), Bytes());
}
void MeetByTensors(Communicator& comm) {
  MemoryDevice device(/*memory_is_host=*/true);
  auto stream = device.NewStream();
  const Tensor knock = Tensor::Allocate(device, DType::kU8, {1}).value();
  for (int peer = 0; peer < comm.size(); ++peer) comm.Send(peer, knock, *stream);
  for (int peer = 0; peer < comm.size(); ++peer) {
    EXPECT_EQ(comm.Recv(peer, knock, *stream, kPatience), absl::OkStatus());
  }
}

// Contiguous values, distinct by `seed`.
void Fill(const Tensor& tensor, int seed) {
  auto* values = tensor.view().as<float>();
  std::iota(values, values + tensor.view().elements(), static_cast<float>(1000 * seed));
}

void BytesKeepTheirOrder(Communicator& comm) {
  constexpr int kMessages = 500;
  for (int i = 0; i < kMessages; ++i) comm.SendBytes(Next(comm), Number(i));
  for (int i = 0; i < kMessages; ++i) ASSERT_EQ(NumberIn(Receive(comm, Previous(comm))), i);
}

void BytesArriveAsSent(Communicator& comm) {
  // Around 4 KiB, where MPI begins to ask before it sends, and odd lengths.
  for (size_t bytes : {0, 1, 3, 4055, 4056, 4057, 4096, 4097, 65537, (1 << 20) + 1}) {
    const int shift = static_cast<int>(bytes % 11);
    comm.SendBytes(Next(comm), Filled(bytes, 16 * comm.rank() + shift));
    EXPECT_TRUE(Same(Receive(comm, Previous(comm)), Filled(bytes, 16 * Previous(comm) + shift)))
        << bytes << " bytes";
  }
}

void RanksDoNotMix(Communicator& comm) {
  for (int peer = 0; peer < comm.size(); ++peer) comm.SendBytes(peer, Number(100 + comm.rank()));
  for (int peer = comm.size() - 1; peer >= 0; --peer) {
    EXPECT_EQ(NumberIn(Receive(comm, peer)), 100 + peer);
  }
}

void SendingNeverWaits(Communicator& comm) {
  // More than any transport's own buffers before anybody receives a byte: a send that waited for
  // its receiver would stop all ranks for good.
  constexpr int kLarge = 24;
  constexpr int kSmall = 1000;
  constexpr size_t kBytes = 1 << 19;
  for (int i = 0; i < kLarge; ++i) comm.SendBytes(Next(comm), Filled(kBytes, i));
  for (int i = 0; i < kSmall; ++i) comm.SendBytes(Next(comm), Number(i));
  comm.Progress();
  for (int i = 0; i < kLarge; ++i) {
    ASSERT_TRUE(Same(Receive(comm, Previous(comm)), Filled(kBytes, i))) << "message " << i;
  }
  for (int i = 0; i < kSmall; ++i) ASSERT_EQ(NumberIn(Receive(comm, Previous(comm))), i);
}

// Tensors along the line of ranks, as hidden states go; the last rank's go nowhere.
void TensorsArriveAsSent(Communicator& comm) {
  for (bool memory_is_host : {true, false}) {
    MemoryDevice device(memory_is_host);
    auto stream = device.NewStream();
    for (int64_t rows : {1, 7, 257}) {
      const Tensor sent = Tensor::Allocate(device, DType::kF32, {rows, 1031}).value();
      const Tensor received = Tensor::Allocate(device, DType::kF32, {rows, 1031}).value();
      const Tensor expected = Tensor::Allocate(device, DType::kF32, {rows, 1031}).value();
      Fill(sent, comm.rank());
      if (comm.rank() + 1 < comm.size()) {
        comm.Send(comm.rank() + 1, sent, *stream);
        stream->ZeroAsync(sent.view().data, sent.bytes());  // later work of the stream
      }
      if (comm.rank() > 0) {
        ASSERT_EQ(comm.Recv(comm.rank() - 1, received, *stream, kPatience), absl::OkStatus());
        stream->Synchronize();
        Fill(expected, comm.rank() - 1);
        EXPECT_EQ(std::memcmp(received.view().data, expected.view().data, expected.bytes()), 0)
            << device.name() << ", " << rows << " rows";
      }
    }
  }
}

void PlanesDoNotWaitForEachOther(Communicator& comm) {
  MemoryDevice device(/*memory_is_host=*/true);
  auto stream = device.NewStream();
  const Tensor tensor = Tensor::Allocate(device, DType::kF32, {2, 50000}).value();
  for (int step = 0; step < 4; ++step) {
    Fill(tensor, step);
    comm.SendBytes(Next(comm), Number(step));
    comm.Send(Next(comm), tensor, *stream);
  }
  // All tensors first, though a plan was sent before each; then all plans.
  for (int step = 0; step < 4; ++step) {
    ASSERT_EQ(comm.Recv(Previous(comm), tensor, *stream, kPatience), absl::OkStatus());
    EXPECT_EQ(tensor.view().as<float>()[0], 1000.0f * step);
  }
  for (int step = 0; step < 4; ++step) EXPECT_EQ(NumberIn(Receive(comm, Previous(comm))), step);
}

void AMissedDeadlineSaysWhoAndWhat(Communicator& comm) {
  MemoryDevice device(/*memory_is_host=*/true);
  auto stream = device.NewStream();
  const Tensor tensor = Tensor::Allocate(device, DType::kF32, {2, 3}).value();
  const int peer = Previous(comm);
  const auto missed = [&](const char* what, const char* timeout) {
    return absl::DeadlineExceededError(absl::StrCat("rank ", comm.rank(), ": rank ", peer,
                                                    " did not send ", what, " within ", timeout));
  };
  const absl::Time start = absl::Now();
  EXPECT_EQ(comm.RecvBytes(peer, absl::Milliseconds(30), "the plan of step 7").status(),
            missed("the plan of step 7", "30ms"));
  EXPECT_EQ(comm.RecvBytes(peer, absl::ZeroDuration(), "a ping").status(), missed("a ping", "0"));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(30));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  MeetByTensors(comm);
  EXPECT_EQ(comm.Recv(peer, tensor, *stream, absl::Milliseconds(30)),
            missed("a f32 tensor [2, 3]", "30ms"));
  MeetByBytes(comm);
  // Nothing was lost, in either plane.
  comm.SendBytes(Next(comm), Number(41));
  comm.Send(Next(comm), tensor, *stream);
  EXPECT_EQ(NumberIn(Receive(comm, peer)), 41);
  EXPECT_EQ(comm.Recv(peer, tensor, *stream, kPatience), absl::OkStatus());
}

void HasBytesSeesOnlyBytes(Communicator& comm) {
  const int peer = Previous(comm);
  EXPECT_FALSE(comm.HasBytes(peer));
  MeetByTensors(comm);
  EXPECT_FALSE(comm.HasBytes(peer));
  MeetByTensors(comm);
  comm.SendBytes(Next(comm), Number(5));
  const absl::Time start = absl::Now();
  while (!comm.HasBytes(peer) && absl::Now() - start < kPatience) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_TRUE(comm.HasBytes(peer));
  EXPECT_EQ(NumberIn(Receive(comm, peer)), 5);
  EXPECT_FALSE(comm.HasBytes(peer));
  MeetByTensors(comm);
}

// The last law: the tensor plane cannot be used afterwards.
void ATensorOfAnotherSizeIsRefused(Communicator& comm) {
  MemoryDevice device(/*memory_is_host=*/true);
  auto stream = device.NewStream();
  const Tensor sent = Tensor::Allocate(device, DType::kF32, {2, 3}).value();
  const Tensor expected = Tensor::Allocate(device, DType::kF32, {4, 3}).value();
  comm.Send(Next(comm), sent, *stream);
  EXPECT_EQ(comm.Recv(Previous(comm), expected, *stream, kPatience),
            absl::DataLossError(absl::StrCat("rank ", comm.rank(), ": rank ", Previous(comm),
                                             " sent 24 bytes, but a f32 tensor [4, 3] has 48")));
}

}  // namespace

const std::vector<CommunicatorLaw>& CommunicatorLaws() {
  static const auto& laws = *new std::vector<CommunicatorLaw>{
      {"BytesKeepTheirOrder", BytesKeepTheirOrder},
      {"BytesArriveAsSent", BytesArriveAsSent},
      {"RanksDoNotMix", RanksDoNotMix},
      {"SendingNeverWaits", SendingNeverWaits},
      {"TensorsArriveAsSent", TensorsArriveAsSent},
      {"PlanesDoNotWaitForEachOther", PlanesDoNotWaitForEachOther},
      {"AMissedDeadlineSaysWhoAndWhat", AMissedDeadlineSaysWhoAndWhat},
      {"HasBytesSeesOnlyBytes", HasBytesSeesOnlyBytes},
      {"ATensorOfAnotherSizeIsRefused", ATensorOfAnotherSizeIsRefused},
  };
  return laws;
}

}  // namespace keyline
