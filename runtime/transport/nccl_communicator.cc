// Tensors by NCCL on the caller's stream; all else by the communicator below it.
//
// Nothing here waits without a bound: the NCCL communicator is non-blocking, so every call may
// answer "in progress" and is polled. A failure ends the rank and with it the job (crash-only): one
// side alone cannot abort a NCCL communicator cleanly.
#include <glog/logging.h>
#include <nccl.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/device/status_macros.h"
#include "runtime/transport/communicator.h"
#include "runtime/transport/patient_wait.h"

namespace keyline {
namespace {

// For joining all ranks, and for the first message between two, which connects them.
constexpr absl::Duration kConnectTimeout = absl::Seconds(60);

// What rank 0 tells the others before they join: its result first, so that a failure there does not
// leave them waiting.
struct Invitation {
  int32_t code = ncclSuccess;
  ncclUniqueId id = {};
};

// Polls until `comm` is done with what it was last asked to do.
absl::Status Settle(ncclComm_t comm, Communicator& control, absl::string_view what) {
  PatientWait wait(kConnectTimeout);
  while (true) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
    if (asked != ncclSuccess) state = asked;
    if (state == ncclSuccess) return absl::OkStatus();
    if (state != ncclInProgress) {
      return absl::InternalError(absl::StrCat("rank ", control.rank(), ": ", what, ": ",
                                              ncclGetErrorString(state), "; ",
                                              ncclGetLastError(comm)));
    }
    if (!wait.Pause()) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", control.rank(), ": ", what,
                                                      " did not end within ",
                                                      absl::FormatDuration(kConnectTimeout)));
    }
    control.Progress();
  }
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> control, ncclComm_t comm)
      : control_(std::move(control)), comm_(comm) {}

  ~NcclCommunicator() override {
    // Flushes what was enqueued. If a peer is gone it never ends: then the communicator is left to
    // the end of the process.
    const ncclResult_t code = ncclCommFinalize(comm_);
    absl::Status status = code == ncclSuccess || code == ncclInProgress
                              ? Settle(comm_, *control_, "ncclCommFinalize")
                              : absl::InternalError(ncclGetErrorString(code));
    if (status.ok()) {
      ncclCommDestroy(comm_);
    } else {
      LOG(ERROR) << status;
    }
  }

  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }

  void SendBytes(int peer, std::span<const std::byte> message) override {
    control_->SendBytes(peer, message);
  }
  absl::StatusOr<Bytes> RecvBytes(int peer, absl::Duration timeout,
                                  std::string_view awaited) override {
    return control_->RecvBytes(peer, timeout, awaited);
  }
  bool HasBytes(int peer) override { return control_->HasBytes(peer); }

  void Send(int peer, TensorView tensor, Stream& stream) override {
    CheckTensor(peer, tensor);
    CheckDone(ncclSend(tensor.data, tensor.bytes(), ncclUint8, peer, comm_, cuda::Native(stream)),
              "ncclSend to", peer, tensor.bytes());
  }

  absl::Status Recv(int peer, TensorView tensor, Stream& stream,
                    absl::Duration /*timeout*/) override {
    CheckTensor(peer, tensor);
    CheckDone(ncclRecv(tensor.data, tensor.bytes(), ncclUint8, peer, comm_, cuda::Native(stream)),
              "ncclRecv from", peer, tensor.bytes());
    return absl::OkStatus();
  }

  void Progress() override {
    control_->Progress();
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    CHECK(asked == ncclSuccess && (state == ncclSuccess || state == ncclInProgress))
        << "rank " << rank() << ": NCCL: " << ncclGetErrorString(state) << "; "
        << ncclGetLastError(comm_);
  }

 private:
  void CheckTensor(int peer, const TensorView& tensor) const {
    CHECK(tensor.contiguous());
    CHECK(peer >= 0 && peer < size() && peer != rank())
        << "rank " << rank() << " to rank " << peer << " of " << size();
  }

  // The call has been enqueued on the stream, not run.
  void CheckDone(ncclResult_t code, const char* call, int peer, size_t bytes) {
    absl::Status status;
    if (code == ncclInProgress) {
      status = Settle(comm_, *control_, absl::StrCat(call, " rank ", peer));
    } else if (code != ncclSuccess) {
      status = absl::InternalError(ncclGetErrorString(code));
    }
    CHECK(status.ok()) << "rank " << rank() << ": " << call << " rank " << peer << ", " << bytes
                       << " bytes: " << status;
  }

  const std::unique_ptr<Communicator> control_;
  const ncclComm_t comm_;
};

// The same invitation on all ranks, made by rank 0.
absl::StatusOr<ncclUniqueId> ShareUniqueId(Communicator& control) {
  Invitation invitation;
  if (control.rank() == 0) {
    invitation.code = ncclGetUniqueId(&invitation.id);
    for (int r = 1; r < control.size(); ++r) {
      control.SendBytes(r, std::as_bytes(std::span(&invitation, 1)));
    }
  } else {
    ASSIGN_OR_RETURN(const Bytes bytes,
                     control.RecvBytes(0, kConnectTimeout, "the unique id of NCCL"));
    if (bytes.size() != sizeof(invitation)) {
      return absl::DataLossError(absl::StrCat("the unique id of NCCL has ", bytes.size(),
                                              " bytes, not ", sizeof(invitation)));
    }
    std::memcpy(&invitation, bytes.data(), sizeof(invitation));
  }
  if (invitation.code != ncclSuccess) {
    return absl::UnavailableError(
        absl::StrCat("rank 0: ncclGetUniqueId: ",
                     ncclGetErrorString(static_cast<ncclResult_t>(invitation.code))));
  }
  return invitation.id;
}

// One rank's failure is everybody's: all return OK, or all an error.
absl::Status Agree(Communicator& control, absl::Status mine) {
  const auto tell = [&](int peer, const absl::Status& status) {
    const std::string words(status.message());
    control.SendBytes(peer, std::as_bytes(std::span(words)));  // empty: all is well
  };
  const auto ask = [&](int peer) -> absl::Status {
    ASSIGN_OR_RETURN(const Bytes words,
                     control.RecvBytes(peer, 2 * kConnectTimeout, "whether it has joined NCCL"));
    if (words.empty()) return absl::OkStatus();
    return absl::UnavailableError(
        absl::string_view(reinterpret_cast<const char*>(words.data()), words.size()));
  };
  if (control.rank() > 0) {
    tell(0, mine);
    absl::Status all = ask(0);
    return mine.ok() ? all : mine;
  }
  for (int r = 1; r < control.size(); ++r) {
    absl::Status theirs = ask(r);
    if (mine.ok()) mine = theirs;
  }
  for (int r = 1; r < control.size(); ++r) tell(r, mine);
  return mine;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> control, Device& device) {
  const auto* gpu = dynamic_cast<const cuda::CudaDevice*>(&device);
  if (gpu == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("NCCL needs a CUDA device, this rank has ", device.name()));
  }
  ASSIGN_OR_RETURN(const ncclUniqueId id, ShareUniqueId(*control));
  const cuda::CurrentDevice current(gpu->index());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  const ncclResult_t code =
      ncclCommInitRankConfig(&comm, control->size(), id, control->rank(), &config);
  absl::Status joined =
      code == ncclSuccess || code == ncclInProgress
          ? Settle(comm, *control, "ncclCommInitRankConfig")
          : absl::UnavailableError(absl::StrCat(
                "rank ", control->rank(), ": ncclCommInitRankConfig: ", ncclGetErrorString(code)));
  // After a failure `comm` is left as it is: the job ends anyway, and aborting it on one side alone
  // may hang.
  RETURN_IF_ERROR(Agree(*control, joined));
  return std::make_unique<NcclCommunicator>(std::move(control), comm);
}

}  // namespace keyline
