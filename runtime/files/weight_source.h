// WeightSource: finds a named tensor in a checkpoint without copying.
//
// Names are those of Hugging Face checkpoints ("model.layers.3.self_attn.q_proj.weight"), whatever
// the file calls them: a GGUF source translates. Implementations: safetensors/safetensors.h,
// gguf/gguf.h; checkpoint.h picks one. Thread: any; a source is immutable once open.
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

class InputFile;

// Where a tensor lies: row major, `shape` outermost first. Its bytes are in memory (`data`) or in a
// file (`file`, `file_offset`); ReadRows reads either. Valid as long as its source.
struct SourceTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // null where the tensor is in a file
  size_t bytes = 0;
  // > 0: the file stores the rows of each of so many heads for interleaved rotary pairs (GGUF's
  // llama family). ReadRows undoes it, so that callers always see the order of halves.
  int64_t interleaved_heads = 0;
  const InputFile* file = nullptr;
  uint64_t file_offset = 0;  // of the first byte

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

// Rows [first, first + count) as float32, dequantised. out: [count, cols]. DATA_LOSS, with file and
// byte offset, where the file was cut since it was opened; UNIMPLEMENTED for integer tensors.
// REQUIRES: rows in range.
absl::Status ReadRows(const SourceTensor& tensor, int64_t first, int64_t count, float* out);

// Whether a tensor of type `stored` has blocks of `format` (kQ8_0 or kQ4_1), or some that are the
// same numbers in other words: q4_0 is q4_1 with a min of -8 scales.
bool HasBlocksOf(DType stored, DType format);

// Rows [first, first + count) as blocks of `format`, every number kept.
// out: [count, cols / 32 blocks]. DATA_LOSS as above; INVALID_ARGUMENT where a scale of q4_0 is so
// large that -8 of it is beyond half precision. REQUIRES: HasBlocksOf(tensor.dtype, format).
absl::Status ReadBlockRows(const SourceTensor& tensor, DType format, int64_t first, int64_t count,
                           std::byte* out);

// All bytes of the tensor as they are stored. out: [tensor.bytes]. DATA_LOSS as above.
absl::Status ReadBytes(const SourceTensor& tensor, std::byte* out);

}  // namespace keyline
