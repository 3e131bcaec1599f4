// CUDA_CHECK: for calls of the CUDA runtime that fail only if the machine or our code does. Ends
// the process with the call and the error; what a user can cause is a Status instead.
#pragma once

#include <cuda_runtime.h>
#include <glog/logging.h>

namespace keyline::cuda {

inline void CheckCuda(cudaError_t code, const char* call, const char* file, int line) {
  if (code == cudaSuccess) return;
  int device = -1;
  cudaGetDevice(&device);
  google::LogMessageFatal(file, line).stream()
      << "cuda:" << device << ": " << call << " returned " << cudaGetErrorName(code) << " ("
      << static_cast<int>(code) << "): " << cudaGetErrorString(code);
}

}  // namespace keyline::cuda

#define CUDA_CHECK(call) ::keyline::cuda::CheckCuda((call), #call, __FILE__, __LINE__)
