// The functions of libcublasLt that are used here, opened when the first device is: the program
// must start on machines without CUDA, where that library is not. Contracts: cuBLASLt's own
// documentation, under the full names.
#pragma once

#include <cublasLt.h>
#include <glog/logging.h>

#include "absl/status/statusor.h"

namespace keyline::cuda {

struct CublasLt {
  decltype(&::cublasLtCreate) create = nullptr;
  decltype(&::cublasLtDestroy) destroy = nullptr;
  decltype(&::cublasLtGetStatusString) status_string = nullptr;
  decltype(&::cublasLtMatmul) matmul = nullptr;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&::cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&::cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&::cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&::cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&::cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&::cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&::cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
};

// Opened once for the life of the process. UNAVAILABLE says what is missing.
absl::StatusOr<const CublasLt*> OpenCublasLt();

// REQUIRES: OpenCublasLt has succeeded, as it has where there is a CudaDevice.
const CublasLt& Lt();

inline void CheckCublas(cublasStatus_t code, const char* call) {
  CHECK(code == CUBLAS_STATUS_SUCCESS) << call << ": " << Lt().status_string(code);
}

}  // namespace keyline::cuda

#define CUBLAS_CHECK(call) ::keyline::cuda::CheckCublas((call), #call)
