#include "runtime/weights/layer_store.h"

#include <glog/logging.h>

#include "kernels/ops/ops.h"

namespace keyline {
namespace {

constexpr size_t kAlignment = 256;

size_t Append(BlobLayout& layout, std::vector<BlobLayout::Part>& parts, size_t bytes) {
  const size_t offset = (layout.bytes + kAlignment - 1) / kAlignment * kAlignment;
  parts.push_back({offset, bytes});
  layout.bytes = offset + bytes;
  return offset;
}

}  // namespace

int64_t MatrixSpec::rows() const {
  int64_t total = 0;
  for (const RowBlock& block : blocks) total += block.rows;
  return total;
}

bool MatrixSpec::has_bias() const {
  for (const RowBlock& block : blocks) {
    if (!block.bias.empty()) return true;
  }
  return false;
}

BlobLayout LayOut(const Device& device, const LayerSpec& spec, DType dtype) {
  BlobLayout layout;
  for (const MatrixSpec& matrix : spec.matrices) {
    Append(layout, layout.matrices,
           ops::PackedBytes(device, matrix.format.value_or(dtype), matrix.rows(), matrix.cols));
    Append(layout, layout.biases, matrix.has_bias() ? matrix.rows() * sizeof(float) : 0);
  }
  for (const VectorSpec& vector : spec.vectors) {
    Append(layout, layout.vectors, vector.size * sizeof(float));
  }
  layout.bytes = (layout.bytes + kAlignment - 1) / kAlignment * kAlignment;
  return layout;
}

}  // namespace keyline
