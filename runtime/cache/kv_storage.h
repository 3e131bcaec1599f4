// KvStorage: owns K and V of all lanes of a layer, in some number format. Concrete: what a format
// is lies in the kernels (KvFormat in kernels/ops/cache_memory.h), which formats a storage of some
// name combines in cache_registry.cc. Untouched slots are never written again, so never
// re-quantised.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/cache_memory.h"
#include "runtime/cache/cache_registry.h"

namespace keyline {

class KvStorage {
 public:
  // slots: physical ones per lane and KV head, a multiple of kSlotPadding.
  static absl::StatusOr<KvStorage> Create(Device& device, const StorageFormats& formats, int lanes,
                                          int kv_heads, int head_dim, int slots);
  // INVALID_ARGUMENT where a format cannot hold heads of this size.
  static absl::Status Check(const StorageFormats& formats, int head_dim);
  static size_t BytesPerLane(const StorageFormats& formats, int kv_heads, int head_dim, int slots);

  const KvMemory& memory() const { return memory_; }
  size_t device_bytes() const { return k_.bytes() + v_.bytes(); }

 private:
  Tensor k_;
  Tensor v_;
  KvMemory memory_;
};

}  // namespace keyline
