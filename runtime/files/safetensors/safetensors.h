// Safetensors checkpoints: one file, or the shards that an index names.
//
// https://github.com/huggingface/safetensors, read as strictly as its own reader does: the tensors
// tile the data without hole or overlap and the file ends where they end. Errors name the file and
// the tensor: INVALID_ARGUMENT for what is malformed, DATA_LOSS for a file that is too short.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/files/input_file.h"
#include "runtime/files/safetensors/safetensors_header.h"
#include "runtime/files/weight_source.h"

namespace keyline {

class SafetensorsSource : public WeightSource {
 public:
  // One .safetensors file.
  static absl::StatusOr<std::unique_ptr<SafetensorsSource>> Open(const std::string& path);
  // A model.safetensors.index.json; the shards lie beside it. A tensor comes from the shard that
  // the index names, which must have it.
  static absl::StatusOr<std::unique_ptr<SafetensorsSource>> OpenIndex(const std::string& path);

  absl::StatusOr<SourceTensor> Find(std::string_view name) const override;
  bool Contains(std::string_view name) const override;
  std::vector<std::string> names() const override;
  const std::string& path() const override { return path_; }

 private:
  struct Place {
    const InputFile* file = nullptr;
    SafetensorsEntry entry;
    uint64_t data_begin = 0;  // in the file
  };
  explicit SafetensorsSource(std::string path) : path_(std::move(path)) {}

  std::string path_;
  std::vector<std::unique_ptr<InputFile>> files_;
  std::map<std::string, Place, std::less<>> tensors_;
};

}  // namespace keyline
