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

class LayerBlob {
 public:
  LayerBlob() = default;
  // `dtype`: of matrices that have no format of their own. Errors name the tensor, what the model
  // needs and what the file has. `stream` is waited for.
  static absl::StatusOr<LayerBlob> Load(Device& device, Stream& stream, const WeightSource& source,
                                        const LayerSpec& spec, DType dtype);

  // The same weights a second time, copied on the device in the order of `stream`.
  static absl::StatusOr<LayerBlob> Copy(Device& device, Stream& stream, const LayerBlob& from);

  LayerWeights weights() const { return {matrices_, vectors_}; }
  size_t device_bytes() const { return memory_.bytes(); }

 private:
  Tensor memory_;
  std::vector<Weight> matrices_;
  std::vector<TensorView> vectors_;
};

}  // namespace keyline
