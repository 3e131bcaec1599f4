// HostBlock: owns host memory that a device copies from and to at the full speed of its link.
#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"

namespace keyline {

// Movable, not copyable. The device must outlive it.
class HostBlock {
 public:
  HostBlock() = default;
  // RESOURCE_EXHAUSTED where the host has no room.
  static absl::StatusOr<HostBlock> Allocate(Device& device, size_t bytes);
  HostBlock(HostBlock&& other) noexcept;
  HostBlock& operator=(HostBlock&& other) noexcept;
  ~HostBlock();

  std::byte* data() const { return data_; }

 private:
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace keyline
