// The products of a model: our own kernels for few rows, cuBLASLt for many.
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul/activate.cuh"
#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/rms_norm.cuh"

namespace keyline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kAlignment = 256;

unsigned BlocksFor(int64_t elements) {
  return static_cast<unsigned>((elements + kThreads - 1) / kThreads);
}

size_t RoundUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// out[m, n] = sums[m, n] + bias[n], or that added to out: rounded once.
template <class Out>
__global__ void AddBias(Out* out, int64_t stride, const float* sums, int64_t rows, int64_t cols,
                        const float* bias, bool add) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= rows * cols) return;
  Out& x = out[i / cols * stride + i % cols];
  const float sum = sums[i] + bias[i % cols];
  x = FromFloat<Out>(add ? ToFloat(x) + sum : sum);
}

// out[m, n] = act(sums[m, n]) * sums[m, inner + n], biases added first. A thread takes kCount
// outputs of a row; grid: (rows, blocks of a row).
template <class T, int kCount>
__global__ void Gate(T* out, int64_t stride, const T* sums, int64_t inner, const float* bias,
                     Activation activation) {
  const int64_t n = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kCount;
  if (n >= inner) return;
  const T* row = sums + blockIdx.x * 2 * inner;
  const auto gates = *reinterpret_cast<const Run<T, kCount>*>(row + n);
  const auto ups = *reinterpret_cast<const Run<T, kCount>*>(row + inner + n);
  Run<T, kCount> result;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    float gate = ToFloat(gates.value[j]);
    float up = ToFloat(ups.value[j]);
    if (bias != nullptr) {
      gate += bias[n + j];
      up += bias[inner + n + j];
    }
    result.value[j] = FromFloat<T>(Activate(activation, gate) * up);
  }
  *reinterpret_cast<Run<T, kCount>*>(out + blockIdx.x * stride + n) = result;
}

// Norm, product and gate apart, in what order the number of rows asks for.
void Multiply(Stream& s, Product p) {
  CHECK(p.in.dtype == p.w.dtype) << Name(p.in.dtype) << " rows, " << Name(p.w.dtype) << " weights";
  if (TakesSkinny(p)) return SkinnyProduct(s, p);
  const int64_t rows = p.in.rows();
  if (p.w.dtype == DType::kF32 && rows <= kSmallRows) return SmallProduct(s, p);

  const size_t normed_bytes =
      p.norm_weight != nullptr ? RoundUp(BytesOf(p.in.dtype, rows * p.in.cols())) : 0;
  // What a large product leaves to the kernel that adds the bias or multiplies by the gate.
  const DType sums_type = p.gated ? p.in.dtype : DType::kF32;
  const bool finishes = rows > kSmallRows && (p.gated || p.w.bias != nullptr);
  const size_t sums_bytes = finishes ? BytesOf(sums_type, rows * p.w.rows) : 0;
  auto* scratch = static_cast<std::byte*>(Scratch(s, normed_bytes + sums_bytes));
  if (p.norm_weight != nullptr) {
    const TensorView normed = MakeView(scratch, p.in.dtype, {rows, p.in.cols()});
    Norm(s, normed, p.in, {p.norm_weight, p.eps});
    p.in = normed;
    p.norm_weight = nullptr;
    if (TakesSkinny(p)) return SkinnyProduct(s, p);
  }
  if (rows <= kSmallRows) return SmallProduct(s, p);
  if (!finishes) return LargeProduct(s, p.out, p.in, p.w, p.add);
  const TensorView sums = MakeView(scratch + normed_bytes, sums_type, {rows, p.w.rows});
  LargeProduct(s, sums, p.in, p.w, /*add=*/false);
  if (!p.gated) {
    DispatchFloat(p.out.dtype, [&](auto type) {
      using Out = decltype(type);
      AddBias<<<BlocksFor(rows * p.w.rows), kThreads, 0, Native(s)>>>(
          p.out.as<Out>(), p.out.strides[0], sums.as<const float>(), rows, p.w.rows, p.w.bias,
          p.add);
    });
  } else {
    DispatchFloat(p.in.dtype, [&](auto type) {
      using T = decltype(type);
      const int64_t inner = p.w.rows / 2;
      const bool runs = inner % kRun == 0 && p.out.strides[0] % kRun == 0 &&
                        reinterpret_cast<uintptr_t>(p.out.data) % 16 == 0;
      const auto kernel = runs ? Gate<T, kRun> : Gate<T, 1>;
      const dim3 grid(static_cast<unsigned>(rows), BlocksFor(inner / (runs ? kRun : 1)));
      kernel<<<grid, kThreads, 0, Native(s)>>>(p.out.as<T>(), p.out.strides[0], sums.as<const T>(),
                                               inner, p.w.bias, p.activation);
    });
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void MatMul(Stream& s, TensorView out, TensorView in, const Weight& w) {
  Multiply(s, {.out = out, .in = in, .w = w});
}

void MatMulAdd(Stream& s, TensorView out, TensorView in, const Weight& w) {
  Multiply(s, {.out = out, .in = in, .w = w, .add = true});
}

void NormMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w) {
  Multiply(s, {.out = out, .in = in, .w = w, .norm_weight = norm.weight, .eps = norm.eps});
}

void NormGatedMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w,
                     Activation activation) {
  CHECK(out.dtype == in.dtype) << Name(out.dtype) << " from " << Name(in.dtype);
  Multiply(s, {.out = out,
               .in = in,
               .w = w,
               .norm_weight = norm.weight,
               .eps = norm.eps,
               .gated = true,
               .activation = activation});
}

}  // namespace keyline::cuda
