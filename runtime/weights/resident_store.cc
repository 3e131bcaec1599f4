#include "runtime/weights/resident_store.h"

#include <utility>

#include "kernels/device/status_macros.h"

namespace keyline {

absl::StatusOr<std::unique_ptr<ResidentStore>> ResidentStore::Load(
    Device& device, Stream& stream, const WeightSource& source, int first_layer,
    const std::vector<LayerSpec>& specs, DType dtype,
    const std::function<void(size_t bytes)>& progress) {
  auto store = std::make_unique<ResidentStore>();
  store->first_layer_ = first_layer;
  for (const LayerSpec& spec : specs) {
    ASSIGN_OR_RETURN(LayerBlob blob, LayerBlob::Load(device, stream, source, spec, dtype));
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
