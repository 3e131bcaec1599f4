// DeviceProbe: what a device can do at best, measured now: the denominators of every benchmark.
//
// The figures vary with the machine's load and clocks, so measure them between the runs of what is
// compared. Thread: one at a time; a device of its own beside the measured one will do.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace keyline {

class DeviceProbe {
 public:
  // Takes memory far larger than the device's caches: 256 MiB of host memory, 1 GiB of others.
  // RESOURCE_EXHAUSTED where there is no room. The device must outlive it.
  static absl::StatusOr<std::unique_ptr<DeviceProbe>> Make(Device& device);

  // Bytes a second of a read-only pass over `bytes` that lie in no cache; a small read reaches less
  // than a large one. 0: over all of the memory.
  double ReadBandwidth(size_t bytes = 0);
  // Floating point operations a second of products of `dtype`.
  double MultiplyRate(DType dtype);
  // Bytes a second from pinned host memory to the device; 0 where they are the same memory.
  double UploadRate();

  // Device seconds of what `work` enqueues. Where the device runs beside the host it is kept busy
  // with reads until all of the work is enqueued, so that launching is not what is measured.
  double Seconds(Stream& stream, absl::FunctionRef<void()> work);

 private:
  explicit DeviceProbe(Device& device);
  double ReadOnce(size_t bytes);

  Device* device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Event> begin_;
  std::unique_ptr<Event> end_;
  Tensor memory_;
  size_t next_ = 0;  // where the next window of a small read begins
};

// Bytes a second of copies from pinned host memory to the device, on the CPU from memory to memory:
// what layers stream at, at best. Takes up to 256 MiB of both for a moment; RESOURCE_EXHAUSTED
// where there is no room.
absl::StatusOr<double> MeasureLink(Device& device);

}  // namespace keyline
