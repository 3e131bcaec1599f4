// ResidentStore: all layers of a stage stay on the device.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/files/weight_source.h"
#include "runtime/weights/layer_blob.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

class ResidentStore : public LayerStore {
 public:
  // specs[i] is layer first_layer + i. `progress` (may be null) hears the bytes of each layer done.
  static absl::StatusOr<std::unique_ptr<ResidentStore>> Load(
      Device& device, Stream& stream, const WeightSource& source, int first_layer,
      const std::vector<LayerSpec>& specs, DType dtype,
      const std::function<void(size_t bytes)>& progress);

  LayerWeights Acquire(Stream& stream, int layer) override;
  void Release(Stream& stream, int layer) override;
  size_t device_bytes() const override;

 private:
  int first_layer_ = 0;
  std::vector<LayerBlob> layers_;
};

}  // namespace keyline
