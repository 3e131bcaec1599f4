#include "runtime/transport/host_communicator.h"

#include <glog/logging.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace keyline {
namespace {

absl::string_view Abseil(std::string_view s) { return {s.data(), s.size()}; }

// "a f32 tensor [4, 1024]".
std::string Describe(const TensorView& tensor) {
  std::string text = absl::StrCat("a ", Abseil(Name(tensor.dtype)), " tensor [");
  for (int i = 0; i < tensor.rank; ++i) absl::StrAppend(&text, i ? ", " : "", tensor.shape[i]);
  return text + "]";
}

}  // namespace

void HostCommunicator::Send(int peer, TensorView tensor, Stream& stream) {
  CHECK(tensor.contiguous()) << Describe(tensor);
  const size_t bytes = tensor.bytes();
  if (stream.device().memory_is_host()) {
    stream.Synchronize();
    const auto* data = tensor.as<const std::byte>();
    SendTensorBytes(peer, Bytes(data, data + bytes));
    return;
  }
  Bytes staged(bytes);
  stream.CopyAsync(staged.data(), tensor.data, bytes);
  stream.Synchronize();
  SendTensorBytes(peer, std::move(staged));
}

absl::Status HostCommunicator::Recv(int peer, TensorView tensor, Stream& stream,
                                    absl::Duration timeout) {
  CHECK(tensor.contiguous()) << Describe(tensor);
  const size_t bytes = tensor.bytes();
  if (stream.device().memory_is_host()) {
    stream.Synchronize();  // earlier work may still read what is about to be overwritten
    return RecvTensorBytes(peer, {tensor.as<std::byte>(), bytes}, timeout, Describe(tensor));
  }
  Bytes staged(bytes);
  absl::Status status = RecvTensorBytes(peer, staged, timeout, Describe(tensor));
  if (!status.ok()) return status;
  stream.CopyAsync(tensor.data, staged.data(), bytes);
  stream.Synchronize();  // the staged bytes end with this call
  return absl::OkStatus();
}

absl::Status HostCommunicator::NothingCame(int peer, std::string_view awaited,
                                           absl::Duration timeout) const {
  return absl::DeadlineExceededError(absl::StrCat("rank ", rank(), ": rank ", peer,
                                                  " did not send ", Abseil(awaited), " within ",
                                                  absl::FormatDuration(timeout)));
}

absl::Status HostCommunicator::PeerEnded(int peer, std::string_view awaited) const {
  return absl::UnavailableError(absl::StrCat("rank ", rank(), ": rank ", peer,
                                             " has ended without sending ", Abseil(awaited)));
}

absl::Status HostCommunicator::WrongSize(int peer, std::string_view awaited, size_t sent,
                                         size_t expected) const {
  return absl::DataLossError(absl::StrCat("rank ", rank(), ": rank ", peer, " sent ", sent,
                                          " bytes, but ", Abseil(awaited), " has ", expected));
}

}  // namespace keyline
