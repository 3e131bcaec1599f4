// GemmPlans: cuBLASLt for one stream: its handle, its workspace, and the algorithm chosen for each
// shape. Owned by the CudaStream; thread: the stream's.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "absl/status/status.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/weight.h"

namespace keyline::cuda {

class GemmPlans {
 public:
  // `device`: the calling thread's current one, whose memory is used.
  explicit GemmPlans(Device& device);
  ~GemmPlans();

  // Device memory that Reserve takes.
  static size_t BytesFor(size_t trial_bytes);
  // Takes the workspace, and room to try algorithms on products of up to `trial_bytes` of output.
  // Run takes what is missing; an allocation in the midst of work may wait for all of it.
  // RESOURCE_EXHAUSTED where there is no room.
  absl::Status Reserve(size_t trial_bytes);

  // out = in * w^T, or added to out. The first product of a shape tries the algorithms that
  // cuBLASLt proposes, outside of graph captures, and waits for them.
  void Run(cudaStream_t stream, TensorView out, TensorView in, const Weight& w, bool add);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace keyline::cuda
