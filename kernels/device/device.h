// Device: owns the memory of one processor, hands out Streams, carries its OpTable.
//
// One rank opens one Device (OpenDevice) and uses it from one thread. The only virtual classes of
// the kernels are here; operations are plain functions in a table (kernels/ops/op_table.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"

namespace keyline {

class Device;
class Event;
struct OpTable;

// Orders work on one device. Everything enqueued runs in order; a CPU stream runs each thing at
// once, inside the call that enqueues it.
class Stream {
 public:
  virtual ~Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Host or device memory on either side. Host memory must stay valid until the copy has run.
  virtual void CopyAsync(void* to, const void* from, size_t bytes) = 0;
  // The same where either side is device memory or AllocateHost's: CopyAsync has to find that out.
  virtual void CopyPinnedAsync(void* to, const void* from, size_t bytes) {
    CopyAsync(to, from, bytes);
  }
  virtual void ZeroAsync(void* to, size_t bytes) = 0;
  // Waits until all that was enqueued has run.
  virtual void Synchronize() = 0;
  // Waits until `mark`, recorded in this stream, is reached: later work may still be under way.
  void WaitFor(Event& mark);
  // Does the work of `enqueue`, which enqueues on this stream and no other, and does the same for
  // equal keys: the same operations on the same memory, whatever that memory holds. A device that
  // can record work (a CUDA graph) calls it the first two times of a key only and then launches its
  // recording as one piece.
  virtual void Replay(uint64_t /*key*/, absl::FunctionRef<void()> enqueue) { enqueue(); }

  // What a thread does again and again while it waits for this stream: messages between ranks move
  // on only while somebody calls for them, and what the stream waits for may need them. Null:
  // nothing.
  void WhileWaiting(std::function<void()> action) { while_waiting_ = std::move(action); }

  Device& device() const { return *device_; }

 protected:
  explicit Stream(Device& device) : device_(&device) {}
  // Asks again and again, doing meanwhile what WhileWaiting says. The thread is about to be needed,
  // so it keeps its core, but for others that share it.
  void PollUntil(const std::function<bool()>& done);

 private:
  Device* device_;
  std::function<void()> while_waiting_;
};

// A mark in a stream that another stream can wait for.
class Event {
 public:
  virtual ~Event() = default;
  virtual void Record(Stream& stream) = 0;
  virtual void BlockStream(Stream& stream) = 0;  // later work of `stream` waits for the mark
  virtual void Synchronize() = 0;                // the calling thread waits for the mark
  virtual bool Reached() = 0;                    // whether it would not have to
  // Seconds of the device's own clock from `earlier` to this mark; waits for both.
  // REQUIRES: both are of NewTimer of one device, and recorded.
  virtual double SecondsSince(const Event& earlier) = 0;
};

struct DeviceMemory {
  size_t total_bytes = 0;
  size_t free_bytes = 0;
};

class Device {
 public:
  virtual ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Zeroed, aligned to 256 bytes. RESOURCE_EXHAUSTED names the bytes asked for and what is free, or
  // what the limit leaves.
  absl::StatusOr<void*> Allocate(size_t bytes);
  void Free(void* memory);
  // Most bytes that Allocate gives out at a time, from now on; whatever is out stays.
  void LimitMemory(size_t bytes);
  // Bytes that are out, and the most that ever were. What a driver needs for itself is not in it.
  size_t used_bytes() const;
  size_t peak_bytes() const;

  // Host memory that copies from and to this device take at the full speed of the link, without
  // waiting for anything (pinned), and that operations of this device may read and write where they
  // say so. Contents undefined; aligned to 256 bytes. RESOURCE_EXHAUSTED as above. Not counted as
  // device memory.
  virtual absl::StatusOr<void*> AllocateHost(size_t bytes) = 0;
  virtual void FreeHost(void* memory, size_t bytes) = 0;

  virtual std::unique_ptr<Stream> NewStream() = 0;
  virtual std::unique_ptr<Event> NewEvent() = 0;
  virtual std::unique_ptr<Event> NewTimer() = 0;  // an event that knows when it was reached
  virtual DeviceMemory memory() const = 0;
  // "cpu (AVX-512 BF16, 2 threads)" or "NVIDIA H200": for people.
  virtual std::string description() const = 0;
  // True where device memory can be read and written by the host as it is (the CPU).
  virtual bool memory_is_host() const { return false; }
  // Number format of activations between operations, given that of the weights.
  virtual DType ActivationType(DType weights) const = 0;

  const std::string& name() const { return name_; }  // "cpu", "cuda:1"
  const OpTable& ops() const { return *ops_; }

 protected:
  Device(std::string name, const OpTable& ops) : name_(std::move(name)), ops_(&ops) {}

 private:
  virtual absl::StatusOr<void*> AllocateMemory(size_t bytes) = 0;
  virtual void FreeMemory(void* memory, size_t bytes) = 0;

  std::string name_;
  const OpTable* ops_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, size_t> blocks_;  // guarded by mutex_, as are the next three
  size_t limit_ = SIZE_MAX;
  size_t used_ = 0;
  size_t peak_ = 0;
};

struct DeviceOptions {
  int threads = 0;  // CPU: compute threads of this device; 0 = one for each core
  // A GPU: a row's numbers do not depend on how many others are computed with it. Products then
  // read the weights anew for every 32 rows, or 16 in float32. On the CPU they never do.
  bool deterministic = false;
};

// "cpu" or "cuda:N". INVALID_ARGUMENT for other names, UNAVAILABLE where the build or the machine
// has no such device.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name,
                                                   const DeviceOptions& options = {});

}  // namespace keyline
