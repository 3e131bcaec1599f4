// A device that only moves memory: host memory as it is, or behind copies as on a GPU.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernels/device/device.h"
#include "kernels/ops/op_table.h"

namespace keyline {

class MemoryDevice : public Device {
 public:
  explicit MemoryDevice(bool memory_is_host)
      : Device(memory_is_host ? "near" : "far", kNoOps), memory_is_host_(memory_is_host) {}

  absl::StatusOr<void*> AllocateHost(size_t bytes) override { return std::calloc(1, bytes); }
  void FreeHost(void* memory, size_t) override { std::free(memory); }
  std::unique_ptr<Stream> NewStream() override { return std::make_unique<MemoryStream>(*this); }
  std::unique_ptr<Event> NewEvent() override { return nullptr; }
  std::unique_ptr<Event> NewTimer() override { return nullptr; }
  DeviceMemory memory() const override { return {}; }
  std::string description() const override { return name(); }
  bool memory_is_host() const override { return memory_is_host_; }
  DType ActivationType(DType weights) const override { return weights; }

 private:
  absl::StatusOr<void*> AllocateMemory(size_t bytes) override { return std::calloc(1, bytes); }
  void FreeMemory(void* memory, size_t) override { std::free(memory); }

  class MemoryStream : public Stream {
   public:
    explicit MemoryStream(Device& device) : Stream(device) {}
    void CopyAsync(void* to, const void* from, size_t bytes) override {
      if (bytes > 0) std::memcpy(to, from, bytes);
    }
    void ZeroAsync(void* to, size_t bytes) override { std::memset(to, 0, bytes); }
    void Synchronize() override {}
  };

  static constexpr OpTable kNoOps{};
  const bool memory_is_host_;
};

}  // namespace keyline
