// Ranks as processes that mpirun started. Every call is non-blocking and polled (patient_wait.h): a
// blocking MPI call on a dead or hung peer never returns.
//
// A message is two MPI messages of the plane's tag: a MessageHeader, then the payload, if any. So
// the receiver checks the length before it allocates, and a tensor's payload lands where it
// belongs.
#include <glog/logging.h>
#include <mpi.h>

#include <array>
#include <list>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/device/status_macros.h"
#include "runtime/transport/host_communicator.h"
#include "runtime/transport/message_header.h"
#include "runtime/transport/patient_wait.h"

namespace keyline {
namespace {

// Crash-only: a failing MPI call, like a peer that stops in the middle of a message, ends the rank
// and with it the job.
void CheckMpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  int rank = -1;
  MPI_Error_string(code, text.data(), &length);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  LOG(FATAL) << "rank " << rank << ": " << call << " returned " << code << ": " << text.data();
}
#define MPI_CHECK(call) CheckMpi((call), #call)

// For a payload whose header is here, and for what is still on its way when the rank ends.
constexpr absl::Duration kTransferTimeout = absl::Seconds(10);

class MpiCommunicator : public HostCommunicator {
 public:
  MpiCommunicator(int rank, uint64_t epoch)
      : HostCommunicator(std::make_shared<RankState>(rank, RankState::JobDirectory())),
        epoch_(epoch),
        rank_(rank) {
    MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &size_));
    peers_.resize(size_);
  }

  ~MpiCommunicator() override {
    PatientWait wait(kTransferTimeout);
    for (int peer = 0; peer < size_; ++peer) {
      while (!DropDelivered(peer)) {
        if (wait.Pause()) continue;
        LOG(ERROR) << "rank " << rank_ << ": rank " << peer << " did not take "
                   << peers_[peer].outbox.size() << " messages within "
                   << absl::FormatDuration(kTransferTimeout) << " of this rank's end";
        MPI_Abort(MPI_COMM_WORLD, kLostRank);  // MPI_Finalize would wait for that peer forever
      }
    }
    MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void SendBytes(int peer, std::span<const std::byte> message) override {
    Post(peer, Plane::kBytes, Bytes(message.begin(), message.end()));
  }

  absl::StatusOr<Bytes> RecvBytes(int peer, absl::Duration timeout,
                                  std::string_view awaited) override {
    ASSIGN_OR_RETURN(const MessageHeader header,
                     AwaitPayload(peer, Plane::kBytes, timeout, awaited));
    Bytes message(header.payload_bytes);
    RETURN_IF_ERROR(TakePayload(peer, header, message));
    return message;
  }

  bool HasBytes(int peer) override {
    return InboxOf(peer, Plane::kBytes).header.has_value() ||
           ArrivedBytes(peer, Plane::kBytes).has_value();
  }

  void Progress() override {
    for (int peer = 0; peer < size_; ++peer) DropDelivered(peer);
  }

 protected:
  void SendTensorBytes(int peer, Bytes message) override {
    Post(peer, Plane::kTensors, std::move(message));
  }

  absl::Status RecvTensorBytes(int peer, std::span<std::byte> into, absl::Duration timeout,
                               std::string_view awaited) override {
    ASSIGN_OR_RETURN(const MessageHeader header,
                     AwaitPayload(peer, Plane::kTensors, timeout, awaited));
    if (header.payload_bytes != into.size()) {
      return WrongSize(peer, awaited, header.payload_bytes, into.size());
    }
    return TakePayload(peer, header, into);
  }

 private:
  // A message on its way. MPI reads it until both requests are done, so it stays where it is.
  struct Outgoing {
    MessageHeader header;
    Bytes payload;
    std::array<MPI_Request, 2> requests = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
  };
  struct Inbox {
    uint64_t next_sequence = 0;
    std::optional<MessageHeader> header;  // its payload has not been taken yet
  };
  struct Peer {
    std::list<Outgoing> outbox;  // both planes, oldest first
    std::array<uint64_t, 2> sent = {};
    std::array<Inbox, 2> inboxes;
  };

  static int Tag(Plane plane) { return static_cast<int>(plane); }
  static size_t Index(Plane plane) { return static_cast<size_t>(plane) - 1; }

  Peer& PeerAt(int peer) {
    CHECK(peer >= 0 && peer < size_) << "rank " << peer << " of " << size_;
    return peers_[peer];
  }
  Inbox& InboxOf(int peer, Plane plane) { return PeerAt(peer).inboxes[Index(plane)]; }

  void Post(int peer, Plane plane, Bytes message) {
    CHECK_LE(message.size(), kMaxMessageBytes);
    DropDelivered(peer);
    Peer& to = PeerAt(peer);
    Outgoing& out = to.outbox.emplace_back();
    out.payload = std::move(message);
    out.header = MakeHeader(plane, epoch_, to.sent[Index(plane)]++, out.payload);
    MPI_CHECK(MPI_Isend(&out.header, sizeof(out.header), MPI_BYTE, peer, Tag(plane), MPI_COMM_WORLD,
                        &out.requests[0]));
    if (out.payload.empty()) return;
    MPI_CHECK(MPI_Isend(out.payload.data(), static_cast<int>(out.payload.size()), MPI_BYTE, peer,
                        Tag(plane), MPI_COMM_WORLD, &out.requests[1]));
  }

  // Frees messages that MPI has done with, oldest first. True if none is left.
  bool DropDelivered(int peer) {
    std::list<Outgoing>& outbox = PeerAt(peer).outbox;
    while (!outbox.empty()) {
      int done = 0;
      auto& requests = outbox.front().requests;
      MPI_CHECK(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                            MPI_STATUSES_IGNORE));
      if (!done) return false;
      outbox.pop_front();
    }
    return true;
  }

  // Length of the next MPI message, if it is here.
  static std::optional<size_t> ArrivedBytes(int peer, Plane plane) {
    int arrived = 0;
    MPI_Status status;
    MPI_CHECK(MPI_Iprobe(peer, Tag(plane), MPI_COMM_WORLD, &arrived, &status));
    if (!arrived) return std::nullopt;
    int bytes = 0;
    MPI_CHECK(MPI_Get_count(&status, MPI_BYTE, &bytes));
    return static_cast<size_t>(bytes);
  }

  // Waits until the next message's header has come and its payload begins to. After a missed
  // deadline the header stays in the inbox for the next call.
  absl::StatusOr<MessageHeader> AwaitPayload(int peer, Plane plane, absl::Duration timeout,
                                             std::string_view awaited) {
    Inbox& inbox = InboxOf(peer, plane);
    PatientWait wait(timeout);
    const auto await_bytes = [&](size_t expected) -> absl::Status {
      std::optional<size_t> bytes;
      while (!(bytes = ArrivedBytes(peer, plane))) {
        if (!wait.Pause()) return NothingCame(peer, awaited, timeout);
      }
      return *bytes == expected ? absl::OkStatus()
                                : WrongSize(peer, "what comes next", *bytes, expected);
    };
    if (!inbox.header) {
      MessageHeader header;
      RETURN_IF_ERROR(await_bytes(sizeof(header)));
      MPI_CHECK(MPI_Recv(&header, sizeof(header), MPI_BYTE, peer, Tag(plane), MPI_COMM_WORLD,
                         MPI_STATUS_IGNORE));  // it is here: no waiting
      RETURN_IF_ERROR(CheckHeader(header, {.peer = peer,
                                           .plane = plane,
                                           .epoch = epoch_,
                                           .sequence = inbox.next_sequence,
                                           .max_bytes = kMaxMessageBytes}));
      ++inbox.next_sequence;
      inbox.header = header;
    }
    if (inbox.header->payload_bytes > 0) RETURN_IF_ERROR(await_bytes(inbox.header->payload_bytes));
    return *inbox.header;
  }

  // REQUIRES: AwaitPayload has returned `header`; `into` has its size.
  absl::Status TakePayload(int peer, const MessageHeader& header, std::span<std::byte> into) {
    InboxOf(peer, header.plane).header.reset();
    if (!into.empty()) {
      MPI_Request request = MPI_REQUEST_NULL;
      MPI_CHECK(MPI_Irecv(into.data(), static_cast<int>(into.size()), MPI_BYTE, peer,
                          Tag(header.plane), MPI_COMM_WORLD, &request));
      PatientWait wait(kTransferTimeout);
      int done = 0;
      while (MPI_CHECK(MPI_Test(&request, &done, MPI_STATUS_IGNORE)), !done) {
        if (!wait.Pause()) {
          // MPI still writes into the caller's memory, so this cannot be an error to return.
          EndLostRank(*state(), absl::StrCat("rank ", peer, " stopped in the middle of ",
                                             into.size(), " bytes"));
        }
      }
    }
    return CheckPayload(header, peer, into);
  }

  const uint64_t epoch_;
  const int rank_;
  int size_ = 0;
  std::vector<Peer> peers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(uint64_t epoch) {
  int initialized = 0;
  MPI_CHECK(MPI_Initialized(&initialized));
  CHECK(!initialized) << "one MPI communicator in the life of a process";
  int level = 0;
  if (const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level);
      code != MPI_SUCCESS) {
    return absl::UnavailableError(absl::StrCat("MPI_Init_thread returned ", code));
  }
  if (level < MPI_THREAD_FUNNELED) {
    return absl::UnavailableError(
        "this MPI cannot be used beside other threads (MPI_THREAD_FUNNELED)");
  }
  MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  SleepPrecisely();
  int rank = 0;
  MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  return std::make_unique<MpiCommunicator>(rank, epoch);
}

}  // namespace keyline
