// Products of many rows: cuBLASLt, with the fastest of its algorithms for each shape.
//
// cuBLASLt is column major: out^T [outputs, rows] = w [outputs, inputs] * in^T [inputs, rows],
// where our row-major w is a column-major matrix to be transposed. Algorithms that split the inputs
// over blocks are left out: those that do not all add them up in the same order, so that the
// choice, which is timed, and the number of rows do not show in the result.

#include <algorithm>
#include <bit>
#include <limits>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul/cublas_lt.h"
#include "kernels/cuda/matmul/gemm_plans.h"
#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/matmul/weight_layout.h"
#include "kernels/device/status_macros.h"

namespace keyline::cuda {
namespace {

constexpr size_t kWorkspaceBytes = 32 << 20;
constexpr int kCandidates = 8;
constexpr int kTimedRuns = 3;

cudaDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
    default:
      LOG(FATAL) << "no product in " << Name(dtype);
  }
}

class Layout {
 public:
  Layout(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
    CUBLAS_CHECK(Lt().layout_create(&layout_, TypeOf(dtype), rows, cols, stride));
  }
  ~Layout() { Lt().layout_destroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_;
};

// Largest power of two that divides the address, up to 256.
uint32_t AlignmentOf(const void* data) {
  return 1u << std::min(8, std::countr_zero(reinterpret_cast<uintptr_t>(data) | 256));
}

}  // namespace

// What is known of one shape.
struct GemmPlans::State {
  Device* device = nullptr;
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, DType, DType, bool, uint32_t,
                         uint32_t, uint32_t>;
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  void* workspace = nullptr;
  void* trial = nullptr;  // where algorithms are tried
  size_t trial_bytes = 0;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms;
};

GemmPlans::GemmPlans(Device& device) : state_(std::make_unique<State>()) {
  state_->device = &device;
  CUBLAS_CHECK(Lt().create(&state_->handle));
  CUBLAS_CHECK(Lt().desc_create(&state_->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  CUBLAS_CHECK(
      Lt().desc_set(state_->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  CUBLAS_CHECK(Lt().preference_create(&state_->preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    CUBLAS_CHECK(Lt().preference_set(state_->preference, attribute, &value, sizeof(value)));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
}

GemmPlans::~GemmPlans() {
  Lt().preference_destroy(state_->preference);
  Lt().desc_destroy(state_->desc);
  Lt().destroy(state_->handle);
  state_->device->Free(state_->trial);
  state_->device->Free(state_->workspace);
}

size_t GemmPlans::BytesFor(size_t trial_bytes) { return kWorkspaceBytes + trial_bytes; }

absl::Status GemmPlans::Reserve(size_t trial_bytes) {
  State& state = *state_;
  if (state.workspace == nullptr) {
    ASSIGN_OR_RETURN(state.workspace, state.device->Allocate(kWorkspaceBytes));
  }
  if (trial_bytes <= state.trial_bytes) return absl::OkStatus();
  state.device->Free(std::exchange(state.trial, nullptr));
  state.trial_bytes = 0;
  ASSIGN_OR_RETURN(state.trial, state.device->Allocate(trial_bytes));
  state.trial_bytes = trial_bytes;
  return absl::OkStatus();
}

void GemmPlans::Run(cudaStream_t stream, TensorView out, TensorView in, const Weight& w, bool add) {
  const int64_t rows = in.rows();
  const Layout a(w.dtype, w.cols, w.rows, PaddedCols(w.cols));
  const Layout b(in.dtype, w.cols, rows, in.strides[0]);
  const Layout c(out.dtype, w.rows, rows, out.strides[0]);
  const float one = 1;
  const float beta = add ? 1 : 0;
  State& state = *state_;
  if (state.workspace == nullptr) {
    const absl::Status reserved = Reserve(0);
    CHECK(reserved.ok()) << reserved;
  }
  const auto multiply = [&](void* to, const Layout& d, const cublasLtMatmulAlgo_t& algorithm) {
    return Lt().matmul(state.handle, state.desc, &one, w.data, a.get(), in.data, b.get(), &beta,
                       out.data, c.get(), to, d.get(), &algorithm, state.workspace, kWorkspaceBytes,
                       stream);
  };
  const State::Key key = {rows,
                          w.rows,
                          w.cols,
                          in.strides[0],
                          out.strides[0],
                          in.dtype,
                          out.dtype,
                          add,
                          AlignmentOf(w.data),
                          AlignmentOf(in.data),
                          AlignmentOf(out.data)};
  auto found = state.algorithms.find(key);
  if (found == state.algorithms.end()) {
    const auto align = [&](cublasLtMatmulPreferenceAttributes_t attribute, uint32_t bytes) {
      CUBLAS_CHECK(Lt().preference_set(state.preference, attribute, &bytes, sizeof(bytes)));
    };
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, AlignmentOf(w.data));
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, AlignmentOf(in.data));
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, AlignmentOf(out.data));
    align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, AlignmentOf(out.data));
    cublasLtMatmulHeuristicResult_t candidates[kCandidates];
    int count = 0;
    CUBLAS_CHECK(Lt().heuristic(state.handle, state.desc, a.get(), b.get(), c.get(), c.get(),
                                state.preference, kCandidates, candidates, &count));
    CHECK_GT(count, 0) << "cuBLASLt has no algorithm for " << rows << " x " << w.rows << " x "
                       << w.cols << " " << Name(w.dtype);
    int best = 0;
    cudaStreamCaptureStatus capturing;
    CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
    // Elsewhere, since a product must not be added to out more than once. No room is no error.
    if (count > 1 && capturing == cudaStreamCaptureStatusNone &&
        Reserve(BytesOf(out.dtype, rows * w.rows)).ok()) {
      const Layout d(out.dtype, w.rows, rows, w.rows);
      cudaEvent_t begin, end;
      CUDA_CHECK(cudaEventCreate(&begin));
      CUDA_CHECK(cudaEventCreate(&end));
      float best_ms = std::numeric_limits<float>::infinity();
      for (int i = 0; i < count; ++i) {
        // An algorithm may not take the other stride; it then keeps its place behind the others.
        if (multiply(state.trial, d, candidates[i].algo) != CUBLAS_STATUS_SUCCESS) continue;
        CUDA_CHECK(cudaEventRecord(begin, stream));
        for (int run = 0; run < kTimedRuns; ++run) {
          CUBLAS_CHECK(multiply(state.trial, d, candidates[i].algo));
        }
        CUDA_CHECK(cudaEventRecord(end, stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        float ms = 0;
        CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
        if (ms < best_ms) {
          best_ms = ms;
          best = i;
        }
      }
      CUDA_CHECK(cudaEventDestroy(begin));
      CUDA_CHECK(cudaEventDestroy(end));
    }
    found = state.algorithms.emplace(key, candidates[best].algo).first;
  }
  CUBLAS_CHECK(multiply(out.data, c, found->second));
}

size_t TrialBytes(const PassShape& shape) {
  const DType type = IsFloat(shape.weights) ? shape.weights : DType::kBF16;
  const int64_t outputs = std::max(shape.qkv, shape.hidden);
  return std::max({BytesOf(type, int64_t{2} * shape.tokens * shape.mlp),
                   BytesOf(DType::kF32, shape.tokens * outputs),
                   BytesOf(DType::kF32, int64_t{shape.logit_rows} * shape.vocab)});
}

void LargeProduct(Stream& s, TensorView out, TensorView in, const Weight& w, bool add) {
  static_cast<CudaStream&>(s).gemm_plans().Run(Native(s), out, in, w, add);
}

}  // namespace keyline::cuda
