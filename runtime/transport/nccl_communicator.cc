// Tensors by NCCL on the caller's stream; all else by the communicator below it.
//
// Nothing here waits without a bound: the NCCL communicator is non-blocking, so every call may
// answer "in progress" and is polled. What was enqueued may never run, if the peer is gone: whoever
// waits for the stream polls Progress() meanwhile (Stream::WhileWaiting), which sees NCCL's
// asynchronous errors, and the watchdog bounds the wait where NCCL sees none. A failure ends the
// rank and with it the job (crash-only): one side alone cannot abort a NCCL communicator cleanly.
//
// Several communicators may live in one process, one for each rank that is a thread: each is used
// by its own thread alone, with one stream, outside any group, so none waits for another.
#include <dlfcn.h>
#include <glog/logging.h>
#include <nccl.h>

#include <cstdlib>
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

// Point-to-point alone, a few KiB to some MiB at a time: more channels only take SMs away.
constexpr int kMaxChannels = 4;

// The functions of libnccl.so.2 that are used here, opened when first asked for: the program must
// start on machines without it.
struct NcclLibrary {
  decltype(&::ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&::ncclCommInitRankConfig) init = nullptr;
  decltype(&::ncclCommGetAsyncError) async_error = nullptr;
  decltype(&::ncclCommFinalize) finalize = nullptr;
  decltype(&::ncclCommDestroy) destroy = nullptr;
  decltype(&::ncclSend) send = nullptr;
  decltype(&::ncclRecv) recv = nullptr;
  decltype(&::ncclGetErrorString) error_string = nullptr;
  decltype(&::ncclGetLastError) last_error = nullptr;
};

absl::StatusOr<NcclLibrary> OpenNccl() {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat(dlerror(), "; install NCCL, or say in LD_LIBRARY_PATH where it is"));
  }
  NcclLibrary nccl;
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) missing = name;
  };
  find(nccl.get_unique_id, "ncclGetUniqueId");
  find(nccl.init, "ncclCommInitRankConfig");
  find(nccl.async_error, "ncclCommGetAsyncError");
  find(nccl.finalize, "ncclCommFinalize");
  find(nccl.destroy, "ncclCommDestroy");
  find(nccl.send, "ncclSend");
  find(nccl.recv, "ncclRecv");
  find(nccl.error_string, "ncclGetErrorString");
  find(nccl.last_error, "ncclGetLastError");
  if (missing != nullptr) {
    return absl::UnavailableError(
        absl::StrCat("libnccl.so.2 has no ", missing, ": NCCL 2.18 or newer is needed"));
  }
  return nccl;
}

// Opened once for the life of the process.
absl::StatusOr<const NcclLibrary*> Nccl() {
  static const auto* const nccl = new absl::StatusOr<NcclLibrary>(OpenNccl());
  if (!nccl->ok()) return nccl->status();
  return &**nccl;
}

// What rank 0 tells the others before they join: its result first, so that a failure there does not
// leave them waiting.
struct Invitation {
  int32_t code = ncclSuccess;
  ncclUniqueId id = {};
};

// Polls until `comm` is done with what it was last asked to do.
absl::Status Settle(const NcclLibrary& nccl, ncclComm_t comm, Communicator& control,
                    absl::string_view what) {
  PatientWait wait(kConnectTimeout);
  while (true) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = nccl.async_error(comm, &state);
    if (asked != ncclSuccess) state = asked;
    if (state == ncclSuccess) return absl::OkStatus();
    if (state != ncclInProgress) {
      return absl::UnavailableError(absl::StrCat("rank ", control.rank(), ": ", what, ": ",
                                                 nccl.error_string(state), "; ",
                                                 nccl.last_error(comm)));
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
  NcclCommunicator(const NcclLibrary& nccl, std::unique_ptr<Communicator> control, ncclComm_t comm)
      : nccl_(nccl), control_(std::move(control)), comm_(comm) {}

  ~NcclCommunicator() override {
    // Flushes what was enqueued. If a peer is gone it never ends: then the communicator is left to
    // the end of the process.
    const ncclResult_t code = nccl_.finalize(comm_);
    absl::Status status = code == ncclSuccess || code == ncclInProgress
                              ? Settle(nccl_, comm_, *control_, "ncclCommFinalize")
                              : absl::UnavailableError(nccl_.error_string(code));
    if (status.ok()) {
      nccl_.destroy(comm_);
    } else {
      LOG(ERROR) << status;
    }
  }

  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }
  const std::shared_ptr<RankState>& state() override { return control_->state(); }

  void SendBytes(int peer, std::span<const std::byte> message) override {
    control_->SendBytes(peer, message);
  }
  absl::StatusOr<Bytes> RecvBytes(int peer, absl::Duration timeout,
                                  std::string_view awaited) override {
    return control_->RecvBytes(peer, timeout, awaited);
  }
  bool HasBytes(int peer) override { return control_->HasBytes(peer); }

  bool EnqueuesTensors() const override { return true; }

  void Send(int peer, TensorView tensor, Stream& stream) override {
    CheckTensor(peer, tensor);
    EndUnlessDone(
        nccl_.send(tensor.data, tensor.bytes(), ncclUint8, peer, comm_, cuda::Native(stream)),
        "ncclSend to", peer, tensor.bytes());
  }

  absl::Status Recv(int peer, TensorView tensor, Stream& stream,
                    absl::Duration /*timeout*/) override {
    CheckTensor(peer, tensor);
    EndUnlessDone(
        nccl_.recv(tensor.data, tensor.bytes(), ncclUint8, peer, comm_, cuda::Native(stream)),
        "ncclRecv from", peer, tensor.bytes());
    return absl::OkStatus();
  }

  void Progress() override {
    control_->Progress();
    ncclResult_t found = ncclSuccess;
    const ncclResult_t asked = nccl_.async_error(comm_, &found);
    if (asked != ncclSuccess) found = asked;
    if (found == ncclSuccess || found == ncclInProgress) return;
    EndLostRank(*state(),
                absl::StrCat("NCCL: ", nccl_.error_string(found), "; ", nccl_.last_error(comm_)));
  }

 private:
  void CheckTensor(int peer, const TensorView& tensor) const {
    CHECK(tensor.contiguous());
    CHECK(peer >= 0 && peer < size() && peer != rank())
        << "rank " << rank() << " to rank " << peer << " of " << size();
  }

  // The call has been enqueued on the stream, not run.
  void EndUnlessDone(ncclResult_t code, const char* call, int peer, size_t bytes) {
    absl::Status status;
    if (code == ncclInProgress) {
      status = Settle(nccl_, comm_, *control_, call);
    } else if (code != ncclSuccess) {
      status = absl::UnavailableError(nccl_.error_string(code));
    }
    if (status.ok()) return;
    EndLostRank(*state(), absl::StrCat(call, " rank ", peer, ", ", bytes,
                                       " bytes: ", absl::string_view(status.message())));
  }

  const NcclLibrary& nccl_;
  const std::unique_ptr<Communicator> control_;
  const ncclComm_t comm_;
};

// The same invitation on all ranks, made by rank 0.
absl::StatusOr<ncclUniqueId> ShareUniqueId(const NcclLibrary& nccl, Communicator& control) {
  Invitation invitation;
  if (control.rank() == 0) {
    invitation.code = nccl.get_unique_id(&invitation.id);
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
                     nccl.error_string(static_cast<ncclResult_t>(invitation.code))));
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
    std::unique_ptr<Communicator>& control, Device& device) {
  const auto* gpu = dynamic_cast<const cuda::CudaDevice*>(&device);
  if (gpu == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("NCCL needs a CUDA device, this rank has ", device.name()));
  }
  const absl::StatusOr<const NcclLibrary*> opened = Nccl();
  RETURN_IF_ERROR(Agree(*control, opened.status()));
  const NcclLibrary& nccl = **opened;
  ASSIGN_OR_RETURN(const ncclUniqueId id, ShareUniqueId(nccl, *control));
  const cuda::CurrentDevice current(gpu->index());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.minCTAs = 1;
  config.maxCTAs = kMaxChannels;
  ncclComm_t comm = nullptr;
  const ncclResult_t code = nccl.init(&comm, control->size(), id, control->rank(), &config);
  absl::Status joined =
      code == ncclSuccess || code == ncclInProgress
          ? Settle(nccl, comm, *control, "ncclCommInitRankConfig")
          : absl::UnavailableError(absl::StrCat(
                "rank ", control->rank(), ": ncclCommInitRankConfig: ", nccl.error_string(code)));
  // After a failure `comm` is left as it is: the job ends anyway, and aborting it on one side alone
  // may hang.
  RETURN_IF_ERROR(Agree(*control, joined));
  return std::make_unique<NcclCommunicator>(nccl, std::move(control), comm);
}

void SetNcclEnvironment(const std::string& host) {
  constexpr int kKeep = 0;  // what the caller has set
  setenv("NCCL_NVLS_ENABLE", "0", kKeep);
  // Loading a kernel at its first launch may wait for the GPU, which may wait for another rank of
  // this very process.
  setenv("CUDA_MODULE_LOADING", "EAGER", kKeep);
  if (host.empty()) return;
  setenv("NCCL_HOSTID", host.c_str(), kKeep);
  setenv("NCCL_SOCKET_IFNAME", "lo", kKeep);
}

}  // namespace keyline
