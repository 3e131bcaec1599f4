// One layer's weights as one piece of device memory, loaded from a checkpoint: packed for the
// device, biases and norms as float32. Also holds the model's ends (embedding, final norm, head).
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "runtime/files/weight_source.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

// Reads a layer and packs it into `host`, LayOut(device, spec, dtype).bytes of host memory.
// `dtype`: of matrices that have no format of their own, here and below. Errors name the tensor,
// what the model needs and what the file has.
absl::Status PackLayer(const Device& device, const WeightSource& source, const LayerSpec& spec,
                       DType dtype, std::byte* host);

// A packed layer at `base`, which is device memory.
class LayerViews {
 public:
  LayerViews() = default;
  LayerViews(const Device& device, const LayerSpec& spec, DType dtype, std::byte* base);
  // The same layer elsewhere.
  LayerViews Moved(const std::byte* from, std::byte* to) const;
  LayerWeights weights() const { return {matrices_, vectors_}; }

 private:
  std::vector<Weight> matrices_;
  std::vector<TensorView> vectors_;
};

class LayerBlob {
 public:
  LayerBlob() = default;
  // Errors: as PackLayer, and RESOURCE_EXHAUSTED. `stream` is waited for.
  static absl::StatusOr<LayerBlob> Load(Device& device, Stream& stream, const WeightSource& source,
                                        const LayerSpec& spec, DType dtype);
  // The same weights a second time, copied on the device in the order of `stream`.
  static absl::StatusOr<LayerBlob> Copy(Device& device, Stream& stream, const LayerBlob& from);

  LayerWeights weights() const { return views_.weights(); }
  size_t device_bytes() const { return memory_.bytes(); }

 private:
  Tensor memory_;
  LayerViews views_;
};

}  // namespace keyline
