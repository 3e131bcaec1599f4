#include "kernels/device/host_block.h"

#include <utility>

#include "kernels/device/status_macros.h"

namespace keyline {

absl::StatusOr<HostBlock> HostBlock::Allocate(Device& device, size_t bytes) {
  ASSIGN_OR_RETURN(void* const memory, device.AllocateHost(bytes));
  HostBlock block;
  block.device_ = &device;
  block.data_ = static_cast<std::byte*>(memory);
  block.bytes_ = bytes;
  return block;
}

HostBlock::HostBlock(HostBlock&& other) noexcept
    : device_(std::exchange(other.device_, nullptr)), data_(other.data_), bytes_(other.bytes_) {}

HostBlock& HostBlock::operator=(HostBlock&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

HostBlock::~HostBlock() {
  if (device_ != nullptr) device_->FreeHost(data_, bytes_);
}

}  // namespace keyline
