// WeightSource: finds a named tensor in a checkpoint without copying.
//
// Names are those of Hugging Face checkpoints ("model.layers.3.self_attn.q_proj.weight"), whatever
// the file calls them: a GGUF source translates. Implementations: safetensors.h, gguf.h.
// Thread: any; a source is immutable once open. Memory lives as long as the source.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"

namespace keyline {

// A tensor as it lies in a file: row major, `shape` outermost first.
struct SourceTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  // > 0: the file stores the rows of each of so many heads for interleaved rotary pairs (GGUF's
  // llama family). ReadRows undoes it, so that callers always see the order of halves.
  int64_t interleaved_heads = 0;

  int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const;  // product of all dimensions but the last
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // NOT_FOUND names the tensor and the file.
  virtual absl::StatusOr<SourceTensor> Find(std::string_view name) const = 0;
  virtual bool Contains(std::string_view name) const = 0;
  virtual std::vector<std::string> names() const = 0;
  virtual const std::string& path() const = 0;  // for messages
};

// Rows [first, first + count) as float32, dequantised. out: [count, cols]. DATA_LOSS where the
// mapped file was cut meanwhile. REQUIRES: rows in range.
absl::Status ReadRows(const SourceTensor& tensor, int64_t first, int64_t count, float* out);

}  // namespace keyline
