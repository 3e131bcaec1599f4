// SafetensorsWriter: writes tensors to a .safetensors file piece by piece, never holding one whole
// (logits of a long text are gigabytes). For results; checkpoints are only read.
//
// Thread: one. A file whose Finish was not reached is truncated, and every reader refuses it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"

namespace keyline {

class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    DType dtype = DType::kF32;  // a plain type
    std::vector<int64_t> shape;
  };

  // Replaces `path` and writes the header. Errors of the file system name the path.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  const std::vector<Tensor>& tensors);
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) noexcept;
  ~SafetensorsWriter();

  // The next bytes, in the order of `tensors`; a piece may end anywhere.
  absl::Status Append(std::span<const std::byte> bytes);
  absl::Status Append(std::span<const float> values) { return Append(std::as_bytes(values)); }
  absl::Status Append(std::span<const int32_t> values) { return Append(std::as_bytes(values)); }

  // Closes the file. CHECKs that as many bytes were appended as `tensors` declared.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string path, int fd, uint64_t data_bytes);

  std::string path_;
  int fd_ = -1;
  uint64_t left_ = 0;  // bytes still to come
};

}  // namespace keyline
