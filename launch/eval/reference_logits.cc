#include "launch/eval/reference_logits.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace keyline {

absl::StatusOr<ReferenceLogits> ReferenceLogits::Create(const std::string& folder, int windows,
                                                        int rows, int vocab) {
  const uint64_t bytes = uint64_t{sizeof(float)} * windows * rows * vocab;
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(folder, error);
  if (error) {
    return absl::NotFoundError(absl::StrCat("--scratch: ", folder, ": ", error.message()));
  }
  if (space.available < bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("--scratch: the dense cache's logits take ", bytes >> 20, " MiB, and ", folder,
                     " has ", space.available >> 20, " MiB free; at most ",
                     space.available / (sizeof(float) * rows * vocab),
                     " windows would fit: lower --windows, or name another folder"));
  }
  std::string path = folder + "/keyline-eval.XXXXXX";
  const int file = mkstemp(path.data());
  if (file < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--scratch: ", folder, ": ", std::strerror(errno)));
  }
  unlink(path.c_str());
  return ReferenceLogits(file, rows, vocab);
}

ReferenceLogits::ReferenceLogits(ReferenceLogits&& other) noexcept
    : file_(std::exchange(other.file_, -1)), rows_(other.rows_), vocab_(other.vocab_) {}

ReferenceLogits::~ReferenceLogits() {
  if (file_ >= 0) close(file_);
}

absl::Status ReferenceLogits::Write(int window, int first, std::span<const float> values) {
  auto bytes = std::as_bytes(values);
  int64_t offset = Offset(window, first);
  while (!bytes.empty()) {
    const ssize_t n = pwrite(file_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("--scratch: writing logits: ", std::strerror(errno)));
    }
    bytes = bytes.subspan(n);
    offset += n;
  }
  return absl::OkStatus();
}

absl::Status ReferenceLogits::Read(int window, int first, std::span<float> values) const {
  auto bytes = std::as_writable_bytes(values);
  int64_t offset = Offset(window, first);
  while (!bytes.empty()) {
    const ssize_t n = pread(file_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return absl::DataLossError(absl::StrCat("--scratch: reading logits at ", offset, ": ",
                                              n == 0 ? "end of file" : std::strerror(errno)));
    }
    bytes = bytes.subspan(n);
    offset += n;
  }
  return absl::OkStatus();
}

}  // namespace keyline
