// GemmPlans: cuBLASLt for one stream: its handle, its workspace, and the algorithm chosen for each
// shape. Owned by the CudaStream; thread: the stream's.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/weight.h"

namespace keyline::cuda {

class GemmPlans {
 public:
  // `device`: the calling thread's current one. Its workspace is memory of it.
  explicit GemmPlans(Device& device);
  ~GemmPlans();

  // out = in * w^T, or added to out. The first product of a shape tries the algorithms that
  // cuBLASLt proposes, outside of graph captures, and waits for them.
  void Run(cudaStream_t stream, TensorView out, TensorView in, const Weight& w, bool add);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace keyline::cuda
