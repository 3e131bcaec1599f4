// How a model's matrices are kept on the device: as numbers of the model's type, or packed as
// blocks of integers (kernels/ops/weight_blocks.h), each 32 inputs of a row with a scale of their
// own.
//
// A choice is made once, from the flag and the checkpoint's tensors, and then written into each
// LayerSpec; models and kernels see no more of it than each matrix's format.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"
#include "runtime/files/weight_source.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

enum class WeightStorage : uint8_t {
  kPlain,  // the model's type
  kInt8,   // q8_0
  kInt4,   // q4_1; embedding and head q8_0
  kFile,   // as the file has them where that is q8_0, q4_0 or q4_1, else plain
};

std::string_view Name(WeightStorage storage);
// "plain", "int8", "int4", "file".
std::vector<std::string> WeightStorageNames();
// INVALID_ARGUMENT lists the names.
absl::StatusOr<WeightStorage> ParseWeightStorage(const std::string& name);

class WeightFormats {
 public:
  WeightFormats() = default;  // plain
  WeightFormats(WeightStorage storage, const WeightSource& source);

  // kPlain where kFile was asked for and the file has nothing packed.
  WeightStorage storage() const { return storage_; }

  // The spec of a layer, or of an embedding or a head, with its matrices' formats.
  LayerSpec OfLayer(LayerSpec spec) const;
  LayerSpec OfEnd(LayerSpec spec) const;

 private:
  LayerSpec AsInFile(LayerSpec spec) const;

  WeightStorage storage_ = WeightStorage::kPlain;
  std::map<std::string, DType, std::less<>> packed_;  // kFile: tensors by the format they can have
};

}  // namespace keyline
