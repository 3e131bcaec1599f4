#include "runtime/weights/layer_blob.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/ops.h"

namespace keyline {
namespace {

// Source rows converted to float32 at a time: bounds the memory of a load to a few MiB.
constexpr int64_t kRowsAtOnce = 256;

absl::StatusOr<SourceTensor> FindMatrix(const WeightSource& source, const RowBlock& block,
                                        int64_t cols) {
  ASSIGN_OR_RETURN(SourceTensor tensor, source.Find(block.tensor));
  if (tensor.shape.size() != 2 || tensor.cols() != cols ||
      tensor.rows() < block.first_row + block.rows) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.path(), ": tensor '", block.tensor, "' has shape [",
                     absl::StrJoin(tensor.shape, ", "), "], the model's configuration needs [",
                     block.first_row + block.rows, ", ", cols, "]"));
  }
  return tensor;
}

absl::Status ReadVector(const WeightSource& source, const std::string& name, int64_t first,
                        int64_t size, float* out) {
  ASSIGN_OR_RETURN(SourceTensor tensor, source.Find(name));
  int64_t elements = 1;
  for (int64_t n : tensor.shape) elements *= n;
  if (elements < first + size || (first == 0 && tensor.shape.size() > 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        source.path(), ": tensor '", name, "' has shape [", absl::StrJoin(tensor.shape, ", "),
        "], the model's configuration needs [", first + size, "]"));
  }
  // A vector is a matrix of one row, or with interleaved heads a column of rows.
  if (tensor.interleaved_heads > 0) {
    tensor.shape = {elements, 1};
    return ReadRows(tensor, first, size, out);
  }
  tensor.shape = {1, elements};
  std::vector<float> all(elements);
  RETURN_IF_ERROR(ReadRows(tensor, 0, 1, all.data()));
  std::copy_n(all.begin() + first, size, out);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LayerBlob> LayerBlob::Load(Device& device, Stream& stream,
                                          const WeightSource& source, const LayerSpec& spec,
                                          DType dtype) {
  const BlobLayout layout = LayOut(device, spec, dtype);
  LayerBlob blob;
  ASSIGN_OR_RETURN(blob.memory_,
                   Tensor::Allocate(device, DType::kU8, {static_cast<int64_t>(layout.bytes)}));
  std::byte* const on_device = blob.memory_.view().as<std::byte>();
  // Packed on the host, in place where the device's memory is the host's.
  std::unique_ptr<std::byte[]> staging;
  std::byte* host = on_device;
  if (!device.memory_is_host()) {
    staging = std::make_unique<std::byte[]>(layout.bytes);
    host = staging.get();
  }
  std::vector<float> rows;
  for (size_t m = 0; m < spec.matrices.size(); ++m) {
    const MatrixSpec& matrix = spec.matrices[m];
    Weight weight{.data = host + layout.matrices[m].offset,
                  .dtype = dtype,
                  .rows = matrix.rows(),
                  .cols = matrix.cols};
    int64_t at = 0;
    for (const RowBlock& block : matrix.blocks) {
      ASSIGN_OR_RETURN(SourceTensor tensor, FindMatrix(source, block, matrix.cols));
      rows.resize(std::min(kRowsAtOnce, block.rows) * matrix.cols);
      for (int64_t done = 0; done < block.rows; done += kRowsAtOnce) {
        const int64_t count = std::min(kRowsAtOnce, block.rows - done);
        RETURN_IF_ERROR(ReadRows(tensor, block.first_row + done, count, rows.data()));
        ops::PackRows(device, weight, at + done, count, rows.data());
      }
      if (!block.bias.empty()) {
        auto* bias = reinterpret_cast<float*>(host + layout.biases[m].offset);
        RETURN_IF_ERROR(ReadVector(source, block.bias, block.first_row, block.rows, bias + at));
      }
      at += block.rows;
    }
    weight.data = on_device + layout.matrices[m].offset;
    if (matrix.has_bias()) {
      weight.bias = reinterpret_cast<const float*>(on_device + layout.biases[m].offset);
    }
    blob.matrices_.push_back(weight);
  }
  for (size_t v = 0; v < spec.vectors.size(); ++v) {
    const VectorSpec& vector = spec.vectors[v];
    auto* values = reinterpret_cast<float*>(host + layout.vectors[v].offset);
    RETURN_IF_ERROR(ReadVector(source, vector.tensor, 0, vector.size, values));
    for (int64_t i = 0; i < vector.size; ++i) values[i] += vector.add;
    blob.vectors_.push_back(
        MakeView(on_device + layout.vectors[v].offset, DType::kF32, {vector.size}));
  }
  if (staging != nullptr) {
    stream.CopyAsync(on_device, host, layout.bytes);
    stream.Synchronize();
  }
  return blob;
}

}  // namespace keyline
