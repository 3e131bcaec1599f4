// CpuDevice: the machine's own memory and cores. CpuStream: runs each operation inside the call.
//
// Opened by OpenDevice("cpu"); used from one thread, which takes part in every parallel loop. The
// instruction set is chosen once, when the device opens; each has the same table of row and tile
// kernels (kernels/cpu/isa/kernel_set.h).
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cpu/huge_pages.h"
#include "kernels/cpu/isa/kernel_set.h"
#include "kernels/cpu/parallel.h"
#include "kernels/device/device.h"

namespace keyline {

class CpuDevice final : public Device {
 public:
  CpuDevice(int threads, const KernelSet& kernels);

  absl::StatusOr<void*> AllocateHost(size_t bytes) override { return AllocateMemory(bytes); }
  void FreeHost(void* memory, size_t bytes) override { FreeMemory(memory, bytes); }
  std::unique_ptr<Stream> NewStream() override;
  std::unique_ptr<Event> NewEvent() override;
  std::unique_ptr<Event> NewTimer() override { return NewEvent(); }
  DeviceMemory memory() const override;
  std::string description() const override;
  bool memory_is_host() const override { return true; }
  DType ActivationType(DType) const override { return DType::kF32; }

  ThreadPool& pool() { return pool_; }
  const KernelSet& kernels() const { return *kernels_; }

 private:
  absl::StatusOr<void*> AllocateMemory(size_t bytes) override;
  void FreeMemory(void* memory, size_t bytes) override;

  HugePages huge_pages_;
  ThreadPool pool_;
  const KernelSet* kernels_;
};

class CpuStream final : public Stream {
 public:
  explicit CpuStream(CpuDevice& device) : Stream(device), device_(&device) {}
  ~CpuStream() override;

  void CopyAsync(void* to, const void* from, size_t bytes) override;
  void ZeroAsync(void* to, size_t bytes) override;
  void Synchronize() override {}
  absl::Status ReserveScratch(size_t bytes);

  // Working memory of the operation under way, aligned to 256 bytes, contents undefined; the next
  // call takes it back. It grows to the largest size asked for and stays.
  void* Scratch(size_t bytes);

  ThreadPool& pool() const { return device_->pool(); }
  const KernelSet& kernels() const { return device_->kernels(); }

 private:
  CpuDevice* device_;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
};

// The CPU's own stream behind a Stream of a CpuDevice.
inline CpuStream& AsCpu(Stream& s) { return static_cast<CpuStream&>(s); }

}  // namespace keyline
