#include "runtime/weights/resident_store.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

bool SameTensor(const WeightSource& source, const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return a.empty() && b.empty();
  const absl::StatusOr<SourceTensor> one = source.Find(a);
  const absl::StatusOr<SourceTensor> other = source.Find(b);
  return one.ok() && other.ok() && one->data != nullptr && one->data == other->data &&
         one->dtype == other->dtype && one->shape == other->shape &&
         one->interleaved_heads == other->interleaved_heads;
}

// Whether both layers are made of the same bytes of the source, as those of RandomSource are. Then
// the second one needs no reading: the 140 GB of a 70B shape would take minutes.
bool SameBytes(const WeightSource& source, const LayerSpec& a, const LayerSpec& b) {
  const auto same_matrix = [&](const MatrixSpec& m, const MatrixSpec& n) {
    return m.cols == n.cols &&
           std::equal(m.blocks.begin(), m.blocks.end(), n.blocks.begin(), n.blocks.end(),
                      [&](const RowBlock& x, const RowBlock& y) {
                        return x.rows == y.rows && x.first_row == y.first_row &&
                               SameTensor(source, x.tensor, y.tensor) &&
                               SameTensor(source, x.bias, y.bias);
                      });
  };
  return std::equal(a.matrices.begin(), a.matrices.end(), b.matrices.begin(), b.matrices.end(),
                    same_matrix) &&
         std::equal(a.vectors.begin(), a.vectors.end(), b.vectors.begin(), b.vectors.end(),
                    [&](const VectorSpec& v, const VectorSpec& w) {
                      return v.size == w.size && v.add == w.add &&
                             SameTensor(source, v.tensor, w.tensor);
                    });
}

}  // namespace

absl::StatusOr<std::unique_ptr<ResidentStore>> ResidentStore::Load(
    Device& device, Stream& stream, const WeightSource& source, int first_layer,
    const std::vector<LayerSpec>& specs, DType dtype,
    const std::function<void(size_t bytes)>& progress) {
  auto store = std::make_unique<ResidentStore>();
  store->first_layer_ = first_layer;
  for (size_t i = 0; i < specs.size(); ++i) {
    const bool again = i > 0 && SameBytes(source, specs[i - 1], specs[i]);
    ASSIGN_OR_RETURN(LayerBlob blob,
                     again ? LayerBlob::Copy(device, stream, store->layers_.back())
                           : LayerBlob::Load(device, stream, source, specs[i], dtype));
    if (progress) progress(blob.device_bytes());
    store->layers_.push_back(std::move(blob));
  }
  return store;
}

LayerWeights ResidentStore::Acquire(Stream& /*stream*/, int layer) {
  return layers_.at(layer - first_layer_).weights();
}

void ResidentStore::Release(Stream& /*stream*/, int /*layer*/) {}

size_t ResidentStore::device_bytes() const {
  size_t total = 0;
  for (const LayerBlob& layer : layers_) total += layer.device_bytes();
  return total;
}

}  // namespace keyline
