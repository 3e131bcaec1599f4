#include "runtime/files/safetensors/safetensors_writer.h"

#include <fcntl.h>
#include <glog/logging.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kI64:
      return "I64";
    case DType::kI32:
      return "I32";
    case DType::kI8:
      return "I8";
    case DType::kU8:
      return "U8";
    default:
      LOG(FATAL) << "safetensors has no " << Name(dtype);
  }
}

absl::Status WriteAll(int fd, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot write"));
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::string path, int fd, uint64_t data_bytes)
    : path_(std::move(path)), fd_(fd), left_(data_bytes) {}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), left_(other.left_) {}

SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(left_, other.left_);
  return *this;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            const std::vector<Tensor>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  uint64_t data_bytes = 0;
  for (const Tensor& tensor : tensors) {
    int64_t elements = 1;
    for (const int64_t n : tensor.shape) elements *= n;
    const uint64_t begin = data_bytes;
    data_bytes += BytesOf(tensor.dtype, elements);
    CHECK(!header.contains(tensor.name)) << tensor.name << " stands twice";
    header[tensor.name] = {{"dtype", NameOf(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, data_bytes}}};
  }
  std::string json = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  json.resize((json.size() + 7) / 8 * 8, ' ');  // the data is aligned to 8 bytes
  const uint64_t header_bytes = json.size();

  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot create"));
  SafetensorsWriter writer(path, fd, data_bytes);
  RETURN_IF_ERROR(WriteAll(fd, std::as_bytes(std::span(&header_bytes, 1)), path));
  RETURN_IF_ERROR(WriteAll(fd, std::as_bytes(std::span(json)), path));
  return writer;
}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> bytes) {
  CHECK_LE(bytes.size(), left_) << path_ << ": more than the tensors declared";
  left_ -= bytes.size();
  return WriteAll(fd_, bytes, path_);
}

absl::Status SafetensorsWriter::Finish() {
  CHECK_EQ(left_, 0u) << path_ << ": less than the tensors declared";
  if (close(std::exchange(fd_, -1)) != 0) {  // a full disk may show only here
    return absl::ErrnoToStatus(errno, absl::StrCat(path_, ": cannot write"));
  }
  return absl::OkStatus();
}

}  // namespace keyline
