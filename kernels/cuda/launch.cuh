// Launches that may begin while their predecessor still runs (programmatic dependent launch, CUDA
// C++ Programming Guide, section 3.2.8): where the device can do it, a kernel launched so lets its
// successor begin at once, does what needs nothing of its predecessor, and waits before it reads
// what that wrote or writes what that read.
//
// Every kernel launched here must call WaitForPredecessor in all of its threads: the order is not
// transitive, so one that did not wait would let its successor race its predecessor. Before the
// wait a kernel may read only what nothing of the same pass writes but kernels that have ended
// before others began (LaunchApart): weights, the batch, the rules of lanes, where tokens go, its
// own layer's cache as the pass before left it. A pass begins with a copy to the device, and that
// waits for all there was. Work of CudaStream::Beside is a predecessor, too, of what comes behind
// it.
//
// Waves of attention (attention/decode_pass.cuh) but the first wait at their end only: the first
// lets the next one begin behind its wait. So they may use all that was there then, but nothing
// that the wave before or work joined since reads or writes.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"

namespace keyline::cuda {

__device__ inline void LetSuccessorBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n");
#endif
}

__device__ inline void WaitForPredecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// In clusters of `cluster` blocks, into which the grid comes out even; more than one only where
// HasClusters.
template <class... Parameters, class... Arguments>
void Launch(Stream& s, bool early, unsigned cluster, void (*kernel)(Parameters...), dim3 grid,
            unsigned threads, size_t shared_bytes, const Arguments&... arguments) {
  const cudaStream_t stream = Native(s);  // makes its device current
  constexpr size_t kSharedByDefault = 48 << 10;
  if (shared_bytes > kSharedByDefault) {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (early) {
    cudaLaunchAttribute& attribute = attributes[count++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[count++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {.x = cluster, .y = 1, .z = 1};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

template <class... Parameters, class... Arguments>
void LaunchDependent(Stream& s, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                     size_t shared_bytes, const Arguments&... arguments) {
  Launch(s, NextBeginsEarly(s), /*cluster=*/1, kernel, grid, threads, shared_bytes, arguments...);
}
template <class... Parameters, class... Arguments>
void LaunchDependentClusters(Stream& s, unsigned cluster, void (*kernel)(Parameters...), dim3 grid,
                             unsigned threads, size_t shared_bytes, const Arguments&... arguments) {
  Launch(s, NextBeginsEarly(s), cluster, kernel, grid, threads, shared_bytes, arguments...);
}

// A kernel that begins when all before it has ended, and that the next one waits for whole: what it
// leaves may be read before the wait by whatever is launched later. It need not wait itself.
template <class... Parameters, class... Arguments>
void LaunchApart(Stream& s, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                 size_t shared_bytes, const Arguments&... arguments) {
  Join(s);
  Launch(s, false, /*cluster=*/1, kernel, grid, threads, shared_bytes, arguments...);
  HoldNext(s);
}

}  // namespace keyline::cuda
