// Rotary tables: cosine and sine of position times frequency, computed in float64, stored as
// float32.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "runtime/config/model_config.h"

namespace keyline {

class RopeTable {
 public:
  // For positions [0, positions). RESOURCE_EXHAUSTED where the device has no room.
  static absl::StatusOr<RopeTable> Make(Device& device, Stream& stream, const RopeConfig& config,
                                        int rotary_dim, int positions);
  // Device bytes of such a table, for `keyline plan`.
  static size_t BytesFor(int rotary_dim, int positions);

  Rope rope() const { return rope_; }
  size_t device_bytes() const { return memory_.bytes(); }

 private:
  Tensor memory_;
  Rope rope_;
};

}  // namespace keyline
