// GgufFile: a model in one .gguf file: tensors as a WeightSource, and metadata.
//
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little
// endian. Tensors go by their Hugging Face names (gguf_names.h), in the Hugging Face order of rows.
// Errors of Open name file, key or tensor, and byte offset: INVALID_ARGUMENT for what is malformed,
// DATA_LOSS for a file that is too short, UNIMPLEMENTED for element types we do not read.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/files/gguf/gguf_header.h"
#include "runtime/files/input_file.h"
#include "runtime/files/weight_source.h"

namespace keyline {

class GgufFile : public WeightSource {
 public:
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  // ---- Metadata. NOT_FOUND names the key and the file; INVALID_ARGUMENT a value of another type.
  bool Has(std::string_view key) const;
  // Views stay valid as long as this object. Strings are bytes; nothing says they are UTF-8.
  absl::StatusOr<std::string_view> String(std::string_view key) const;
  absl::StatusOr<bool> Boolean(std::string_view key) const;
  absl::StatusOr<int64_t> Integer(std::string_view key) const;  // any integer type; uint64 > 2^63 -
                                                                // 1 is INVALID_ARGUMENT
  absl::StatusOr<double> Number(std::string_view key) const;    // any integer or float type
  // Arrays: one view an element, no string is copied; numbers are widened.
  absl::StatusOr<std::vector<std::string_view>> Strings(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> Integers(std::string_view key) const;
  absl::StatusOr<std::vector<float>> Numbers(std::string_view key) const;

  // general.architecture: "llama", "qwen3", ...
  const std::string& architecture() const { return architecture_; }

  // ---- Tensors.
  absl::StatusOr<SourceTensor> Find(std::string_view name) const override;
  bool Contains(std::string_view name) const override;
  std::vector<std::string> names() const override;
  const std::string& path() const override { return file_.path(); }

 private:
  GgufFile(InputFile file, std::string bytes, GgufHeader header);
  absl::Status NameTensors();
  absl::StatusOr<const GgufValue*> Value(std::string_view key) const;
  absl::StatusOr<const GgufValue*> Array(std::string_view key) const;
  absl::Status WrongType(std::string_view key, const GgufValue& value,
                         std::string_view wanted) const;

  InputFile file_;
  std::string bytes_;  // the file up to the end of the tensor list; metadata stays in here
  GgufHeader header_;
  std::string architecture_;
  std::map<std::string, SourceTensor, std::less<>> tensors_;  // by Hugging Face name
};

}  // namespace keyline
