// What the GPU can do at best: reading its memory, multiplying matrices by cuBLASLt, copying from
// pinned host memory. Denominators of benchmarks; nothing here is on a request's way.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul/cublas_lt.h"
#include "kernels/device/tensor.h"

namespace keyline::cuda {
namespace {

constexpr int kPasses = 21;

__global__ void AnyKernel() {}

// ---- Reading ----

constexpr int kReadThreads = 256;
constexpr int kReadBlocks = 4;     // of a multiprocessor
constexpr int kReadsInFlight = 8;  // of a thread, 16 bytes each

__device__ uint4 ReadOnce(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__global__ void __launch_bounds__(kReadThreads)
    ReadKernel(const uint4* memory, size_t count, uint32_t* sink) {
  const size_t threads = size_t{gridDim.x} * kReadThreads;
  uint32_t sum = 0;
  size_t i = size_t{blockIdx.x} * kReadThreads + threadIdx.x;
  for (; i + (kReadsInFlight - 1) * threads < count; i += kReadsInFlight * threads) {
    uint4 v[kReadsInFlight];
#pragma unroll
    for (int j = 0; j < kReadsInFlight; ++j) v[j] = ReadOnce(memory + i + j * threads);
#pragma unroll
    for (int j = 0; j < kReadsInFlight; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += threads) {
    const uint4 v = ReadOnce(memory + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x2545f491u) *sink = sum;  // rarely: the loads must look needed
}

int Multiprocessors() {
  int device = 0;
  int count = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// ---- Multiplying ----

constexpr int kM = 4096;
constexpr int kN = 8192;
constexpr int kK = 8192;
constexpr size_t kWorkspace = size_t{64} << 20;

// Roughly normal numbers: multiplying zeros takes less power and runs faster.
template <class T>
__global__ void FillNormal(T* out, size_t count, uint32_t seed) {
  const size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  uint32_t h = static_cast<uint32_t>(i) * 0x9e3779b9u + seed;
  float sum = 0;
  for (int j = 0; j < 4; ++j) {  // of four uniform numbers
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    h ^= h >> 16;
    sum += static_cast<float>(h) * 0x1p-32f - 0.5f;
  }
  out[i] = static_cast<T>(sum);
}

template <class T>
void Fill(cudaStream_t stream, void* out, size_t count, uint32_t seed) {
  constexpr int kThreads = 256;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  FillNormal<<<blocks, kThreads, 0, stream>>>(static_cast<T*>(out), count, seed);
  CUDA_CHECK(cudaGetLastError());
}

// Memory of one probe; a device without room for it is too full to measure.
struct Scratchpad {
  explicit Scratchpad(size_t bytes) { CUDA_CHECK(cudaMalloc(&data, bytes)); }
  ~Scratchpad() { CUDA_CHECK(cudaFree(data)); }
  void* data = nullptr;
};

// Median seconds of `work`, which enqueues on `stream`.
template <class Work>
double MedianSeconds(Stream& stream, const Work& work) {
  std::unique_ptr<Event> begin = stream.device().NewTimer();
  std::unique_ptr<Event> end = stream.device().NewTimer();
  work();
  std::vector<double> seconds;
  for (int i = 0; i < kPasses; ++i) {
    begin->Record(stream);
    work();
    end->Record(stream);
    seconds.push_back(end->SecondsSince(*begin));
  }
  std::nth_element(seconds.begin(), seconds.begin() + kPasses / 2, seconds.end());
  return seconds[kPasses / 2];
}

}  // namespace

int CodeVersion() {
  cudaFuncAttributes attributes;
  CUDA_CHECK(cudaFuncGetAttributes(&attributes, AnyKernel));
  return attributes.ptxVersion;
}

void ReadMemory(Stream& s, const void* memory, size_t bytes) {
  const CurrentDevice current(static_cast<CudaDevice&>(s.device()).index());
  auto* sink = static_cast<uint32_t*>(Scratch(s, sizeof(uint32_t)));
  const size_t count = bytes / sizeof(uint4);
  const size_t useful = (count + kReadThreads - 1) / kReadThreads;
  const auto blocks =
      static_cast<unsigned>(std::min<size_t>(useful, size_t{kReadBlocks} * Multiprocessors()));
  ReadKernel<<<blocks, kReadThreads, 0, Native(s)>>>(static_cast<const uint4*>(memory), count,
                                                     sink);
  CUDA_CHECK(cudaGetLastError());
}

double MultiplyRate(Stream& s, DType dtype) {
  CHECK(IsFloat(dtype)) << Name(dtype);
  const CurrentDevice current(static_cast<CudaDevice&>(s.device()).index());
  const cudaDataType_t type = dtype == DType::kF32    ? CUDA_R_32F
                              : dtype == DType::kBF16 ? CUDA_R_16BF
                                                      : CUDA_R_16F;
  const auto fill = dtype == DType::kF32    ? Fill<float>
                    : dtype == DType::kBF16 ? Fill<__nv_bfloat16>
                                            : Fill<__half>;
  const Scratchpad a(BytesOf(dtype, int64_t{kM} * kK));
  const Scratchpad b(BytesOf(dtype, int64_t{kN} * kK));
  const Scratchpad c(BytesOf(dtype, int64_t{kM} * kN));
  const Scratchpad workspace(kWorkspace);
  fill(Native(s), a.data, size_t{kM} * kK, 1);
  fill(Native(s), b.data, size_t{kN} * kK, 2);

  // Rows of weights times rows of inputs, as the operations have them: C [n, m] = B [n, k] A^T.
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t product;
  cublasLtMatrixLayout_t of_a, of_b, of_c;
  cublasLtMatmulPreference_t preference;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  CUBLAS_CHECK(Lt().create(&handle));
  CUBLAS_CHECK(Lt().desc_create(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  CUBLAS_CHECK(
      Lt().desc_set(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  CUBLAS_CHECK(Lt().layout_create(&of_a, type, kK, kM, kK));
  CUBLAS_CHECK(Lt().layout_create(&of_b, type, kK, kN, kK));
  CUBLAS_CHECK(Lt().layout_create(&of_c, type, kM, kN, kM));
  CUBLAS_CHECK(Lt().preference_create(&preference));
  CUBLAS_CHECK(Lt().preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                   &kWorkspace, sizeof(kWorkspace)));
  constexpr int kCandidates = 4;
  cublasLtMatmulHeuristicResult_t candidates[kCandidates];
  int found = 0;
  CUBLAS_CHECK(Lt().heuristic(handle, product, of_a, of_b, of_c, of_c, preference, kCandidates,
                              candidates, &found));
  CHECK_GT(found, 0) << "cuBLASLt knows no product of " << Name(dtype);
  double best = 0;
  for (int i = 0; i < found; ++i) {
    const float one = 1;
    const float zero = 0;
    const double seconds = MedianSeconds(s, [&] {
      CUBLAS_CHECK(Lt().matmul(handle, product, &one, a.data, of_a, b.data, of_b, &zero, c.data,
                               of_c, c.data, of_c, &candidates[i].algo, workspace.data, kWorkspace,
                               Native(s)));
    });
    best = std::max(best, 2.0 * kM * kN * kK / seconds);
  }
  CUBLAS_CHECK(Lt().preference_destroy(preference));
  CUBLAS_CHECK(Lt().layout_destroy(of_a));
  CUBLAS_CHECK(Lt().layout_destroy(of_b));
  CUBLAS_CHECK(Lt().layout_destroy(of_c));
  CUBLAS_CHECK(Lt().desc_destroy(product));
  CUBLAS_CHECK(Lt().destroy(handle));
  return best;
}

double UploadRate(Stream& s) {
  constexpr size_t kBytes = size_t{256} << 20;
  const CurrentDevice current(static_cast<CudaDevice&>(s.device()).index());
  const Scratchpad to(kBytes);
  void* from = nullptr;
  CUDA_CHECK(cudaMallocHost(&from, kBytes));
  const double seconds = MedianSeconds(s, [&] { s.CopyAsync(to.data, from, kBytes); });
  CUDA_CHECK(cudaFreeHost(from));
  return kBytes / seconds;
}

}  // namespace keyline::cuda
