// The CUDA side of Device, Stream and Event: what launchers of kernels and NCCL need of them.
//
// Private to kernels/cuda and runtime/transport/nccl_communicator.cc; all others see
// kernels/device/device.h. One rank uses one device from one thread; several ranks of a process may
// use one GPU, each through a CudaDevice of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "kernels/device/device.h"

namespace keyline::cuda {

class GemmPlans;

// Makes `index` the calling thread's current device, and the one before again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
};

class CudaStream final : public Stream {
 public:
  // deterministic: as DeviceOptions says.
  CudaStream(Device& device, int index, bool deterministic);
  ~CudaStream() override;
  void CopyAsync(void* to, const void* from, size_t bytes) override;
  void CopyPinnedAsync(void* to, const void* from, size_t bytes) override;
  void ZeroAsync(void* to, size_t bytes) override;
  void Synchronize() override;
  void Replay(uint64_t key, absl::FunctionRef<void()> enqueue) override;
  absl::Status ReserveScratch(size_t bytes);

  cudaStream_t get() const { return stream_; }
  // Of the calling thread: kernels are launched on its current device, whatever the stream's.
  void MakeDeviceCurrent() const;

  // Memory for what one operation leaves to its own next kernel: at least `bytes`, aligned to 256,
  // valid for work enqueued before the next call. Grows by waiting for the stream, so a first pass
  // of the largest size makes it fixed.
  void* Scratch(size_t bytes);
  // The same, but for work of Beside, too: calls take turns with two halves of the memory, so this
  // does not wait for that, and what it gives is valid until Scratch or the next call but one.
  // REQUIRES: behind what the call before enqueued here, the work of Beside before that was joined.
  void* ScratchInTurn(size_t bytes);
  // What that takes of the memory.
  static size_t BytesInTurn(size_t bytes) {
    return 2 * ((bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment);
  }
  GemmPlans& gemm_plans();
  bool deterministic() const { return deterministic_; }
  int multiprocessors() const { return multiprocessors_; }
  size_t shared_of_block() const { return shared_of_block_; }
  // Whether the kernels that run are compiled for compute capability 9 or later, so that they know
  // clusters, and when to begin before their predecessor has ended.
  bool runs_sm90_code() const { return runs_sm90_code_; }
  // The next launch that may begin before its predecessor has ended does not (launch.cuh).
  void HoldNext() { holds_next_ = true; }
  bool NextBeginsEarly() { return !std::exchange(holds_next_, false) && runs_sm90_code_; }
  // Whether the device runs what is compiled for sm_90a (compute capability 9.0).
  bool is_hopper() const { return is_hopper_; }

  // Another stream, for work that begins when all that is enqueued here has run and that nobody
  // waits for yet. This stream goes on beside it with what is known to leave its memory alone
  // (GoesOnBeside); whatever else is enqueued waits for it, and so does the next call of Scratch,
  // whose memory it may use. Of two such works the later one begins when the earlier has ended.
  cudaStream_t Beside();
  // What is enqueued next waits for the work of Beside.
  void Join();
  void JoinUnlessBeside() {
    if (!goes_on_beside_) Join();
  }

 private:
  friend class GoesOnBeside;
  static constexpr size_t kScratchAlignment = 256;
  void ForgetGraphs();

  const int index_;
  const bool deterministic_;
  cudaStream_t stream_ = nullptr;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  bool second_half_ = false;  // whose turn it was
  int multiprocessors_ = 0;
  size_t shared_of_block_ = 0;
  bool runs_sm90_code_ = false;
  bool is_hopper_ = false;
  bool holds_next_ = false;
  // Of Beside; made when it is first called.
  cudaStream_t side_ = nullptr;
  cudaEvent_t forked_ = nullptr;
  cudaEvent_t joined_ = nullptr;
  bool works_beside_ = false;
  bool goes_on_beside_ = false;
  // By Replay's key; null: has run once and is recorded next time.
  std::map<uint64_t, cudaGraphExec_t> graphs_;
  std::unique_ptr<GemmPlans> gemm_plans_;
};

class CudaEvent final : public Event {
 public:
  CudaEvent(int index, bool timer);
  ~CudaEvent() override;
  void Record(Stream& stream) override;
  void BlockStream(Stream& stream) override;
  void Synchronize() override;
  bool Reached() override;
  double SecondsSince(const Event& earlier) override;

 private:
  cudaEvent_t event_ = nullptr;
  // Whether this is known of the last Record. Asking again is a call into the driver.
  bool reached_ = true;
};

class CudaDevice final : public Device {
 public:
  // REQUIRES: the machine has a device `index`.
  explicit CudaDevice(int index, bool deterministic = false);
  absl::StatusOr<void*> AllocateHost(size_t bytes) override;
  void FreeHost(void* memory, size_t bytes) override;
  std::unique_ptr<Stream> NewStream() override;
  std::unique_ptr<Event> NewEvent() override;
  std::unique_ptr<Event> NewTimer() override;
  DeviceMemory memory() const override;
  std::string description() const override;
  // The weights' own format where it is a float, bfloat16 for packed ones.
  DType ActivationType(DType weights) const override;

  int index() const { return index_; }

 private:
  absl::StatusOr<void*> AllocateMemory(size_t bytes) override;
  void FreeMemory(void* memory, size_t bytes) override;

  const int index_;
  const bool deterministic_;
};

// While one lives, what is enqueued on its stream does not wait for the work of Beside. REQUIRES:
// it reads nothing that this writes, and writes nothing that this reads or writes. Not one within
// another.
class GoesOnBeside {
 public:
  explicit GoesOnBeside(Stream& stream) : stream_(static_cast<CudaStream&>(stream)) {
    stream_.goes_on_beside_ = true;
  }
  ~GoesOnBeside() { stream_.goes_on_beside_ = false; }
  GoesOnBeside(const GoesOnBeside&) = delete;
  GoesOnBeside& operator=(const GoesOnBeside&) = delete;

 private:
  CudaStream& stream_;
};

// To enqueue on. REQUIRES: a stream of a CudaDevice. Its device is the calling thread's current one
// afterwards: a rank's thread may be any thread.
inline cudaStream_t Native(Stream& stream) {
  auto& native = static_cast<CudaStream&>(stream);
  native.MakeDeviceCurrent();
  native.JoinUnlessBeside();
  return native.get();
}
inline cudaStream_t Beside(Stream& stream) { return static_cast<CudaStream&>(stream).Beside(); }
inline void Join(Stream& stream) { static_cast<CudaStream&>(stream).Join(); }
inline int Multiprocessors(Stream& stream) {
  return static_cast<CudaStream&>(stream).multiprocessors();
}
// Bytes of shared memory that a block may have at most.
inline size_t SharedOfBlock(Stream& stream) {
  return static_cast<CudaStream&>(stream).shared_of_block();
}
inline bool IsDeterministic(Stream& stream) {
  return static_cast<CudaStream&>(stream).deterministic();
}
inline void HoldNext(Stream& stream) { static_cast<CudaStream&>(stream).HoldNext(); }
inline bool NextBeginsEarly(Stream& stream) {
  return static_cast<CudaStream&>(stream).NextBeginsEarly();
}
inline bool HasClusters(Stream& stream) {
  return static_cast<CudaStream&>(stream).runs_sm90_code();
}
inline bool IsHopper(Stream& stream) { return static_cast<CudaStream&>(stream).is_hopper(); }
inline void* ScratchInTurn(Stream& stream, size_t bytes) {
  return static_cast<CudaStream&>(stream).ScratchInTurn(bytes);
}
inline void* Scratch(Stream& stream, size_t bytes) {
  return static_cast<CudaStream&>(stream).Scratch(bytes);
}

}  // namespace keyline::cuda
