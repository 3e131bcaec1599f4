#include "runtime/weights/weight_storage.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace keyline {
namespace {

constexpr WeightStorage kAll[] = {WeightStorage::kPlain, WeightStorage::kInt8, WeightStorage::kInt4,
                                  WeightStorage::kFile};

LayerSpec All(LayerSpec spec, DType format) {
  for (MatrixSpec& matrix : spec.matrices) matrix.format = format;
  return spec;
}

}  // namespace

std::string_view Name(WeightStorage storage) {
  switch (storage) {
    case WeightStorage::kPlain:
      return "plain";
    case WeightStorage::kInt8:
      return "int8";
    case WeightStorage::kInt4:
      return "int4";
    case WeightStorage::kFile:
      return "file";
  }
  return "?";
}

std::vector<std::string> WeightStorageNames() {
  std::vector<std::string> names;
  for (const WeightStorage storage : kAll) names.emplace_back(Name(storage));
  return names;
}

absl::StatusOr<WeightStorage> ParseWeightStorage(const std::string& name) {
  for (const WeightStorage storage : kAll) {
    if (name == Name(storage)) return storage;
  }
  return absl::InvalidArgumentError(absl::StrCat("weight storage: '", name, "' is unknown; known: ",
                                                 absl::StrJoin(WeightStorageNames(), ", ")));
}

WeightFormats::WeightFormats(WeightStorage storage, const WeightSource& source)
    : storage_(storage) {
  if (storage != WeightStorage::kFile) return;
  for (const std::string& name : source.names()) {
    const absl::StatusOr<SourceTensor> tensor = source.Find(name);
    if (!tensor.ok()) continue;  // loading will say so, if the model needs it
    for (const DType format : {DType::kQ8_0, DType::kQ4_1}) {
      if (HasBlocksOf(tensor->dtype, format)) packed_[name] = format;
    }
  }
  if (packed_.empty()) storage_ = WeightStorage::kPlain;
}

LayerSpec WeightFormats::OfLayer(LayerSpec spec) const {
  switch (storage_) {
    case WeightStorage::kPlain:
      return spec;
    case WeightStorage::kInt8:
      return All(std::move(spec), DType::kQ8_0);
    case WeightStorage::kInt4:
      return All(std::move(spec), DType::kQ4_1);
    case WeightStorage::kFile:
      return AsInFile(std::move(spec));
  }
  return spec;
}

// Logits feel the rounding of the head more than that of any layer, and it is read but once.
LayerSpec WeightFormats::OfEnd(LayerSpec spec) const {
  if (storage_ == WeightStorage::kInt4) return All(std::move(spec), DType::kQ8_0);
  return OfLayer(std::move(spec));
}

// A matrix has one format: blocks that the file keeps in several are plain.
LayerSpec WeightFormats::AsInFile(LayerSpec spec) const {
  for (MatrixSpec& matrix : spec.matrices) {
    for (const RowBlock& block : matrix.blocks) {
      const auto found = packed_.find(block.tensor);
      const bool same = found != packed_.end() &&
                        (&block == matrix.blocks.data() || matrix.format == found->second);
      matrix.format.reset();
      if (!same) break;
      matrix.format = found->second;
    }
  }
  return spec;
}

}  // namespace keyline
