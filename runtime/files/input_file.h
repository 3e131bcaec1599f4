// InputFile: a regular file opened for reading, read by offset.
//
// Not a memory mapping, on purpose: a file that somebody cuts while it is mapped kills the process
// with SIGBUS at the next touch, and handlers of it are process-wide. pread(2) of the same pages is
// as fast for data that is converted once, and answers DATA_LOSS. Thread: any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace keyline {

class InputFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, or INVALID_ARGUMENT for what is not a regular file.
  static absl::StatusOr<InputFile> Open(const std::string& path);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  // Fills `out` with the bytes from `offset` on. DATA_LOSS, with both ends, where the file no
  // longer reaches so far.
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened

 private:
  InputFile(std::string path, int fd, uint64_t size);

  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

// The whole file. INVALID_ARGUMENT where it is larger than `max_bytes`; nothing is read then.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, uint64_t max_bytes);

}  // namespace keyline
