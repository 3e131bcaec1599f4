// DeviceCheck: what CHECK is on the host. A bug of ours ends the kernel before it writes where it
// must not; the next CUDA_CHECK of the process reports it.
#pragma once

namespace keyline::cuda {

__device__ inline void DeviceCheck(bool holds) {
  if (!holds) __trap();
}

}  // namespace keyline::cuda
