// Products of few rows without tensor cores: float32, and rows that begin where vectors do not.
//
// A warp takes two outputs at a time: two consecutive ones, or a gate and its up projection. Its
// lanes stride through the inputs, 16 bytes each; the rows of activations lie in shared memory,
// normed on the way in. Every sum has one order, whatever the number of rows: lane by lane over the
// inputs, then over the lanes.
#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/matmul/activate.cuh"
#include "kernels/cuda/matmul/arguments.cuh"
#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/matmul/weight_layout.h"
#include "kernels/cuda/rms_norm.cuh"

namespace keyline::cuda {
namespace {

constexpr int kThreads = kNormThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnroll = 4;   // 16-byte loads in flight per output
constexpr int kOutputs = 2;  // of a warp at a time
constexpr size_t kSharedByDefault = 48 << 10;
constexpr int64_t kTileBytes = 64 << 10;     // of activations in shared memory
constexpr int kBlocksPerMultiprocessor = 3;  // enough to keep the memory busy

struct SmallArguments : Arguments {
  int64_t units;  // pairs of outputs
  int64_t tile;   // inputs in shared memory at a time
};

template <class T>
__device__ Pack<T> LoadStreaming(const Pack<T>* from) {
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
  return *reinterpret_cast<const Pack<T>*>(&bits);
}

// Inputs [first, first + tile) of all rows into shared memory, zeros behind the last.
template <class T, int kRows>
__device__ void Stage(T* x, const SmallArguments& a, const float (&inverse_rms)[kRows],
                      int64_t first) {
  const int64_t count = a.padded - first < a.tile ? a.padded - first : a.tile;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const T* row = static_cast<const T*>(a.in) + (m < a.rows ? m : 0) * a.in_stride;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const int64_t col = first + i;
      T value = FromFloat<T>(0);
      if (m < a.rows && col < a.cols) {
        value = a.norm_weight == nullptr ? row[col]
                                         : Normed(row[col], inverse_rms[m], a.norm_weight[col]);
      }
      x[m * a.tile + i] = value;
    }
  }
}

template <class T, class Out, int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads) SmallProductKernel(const SmallArguments a) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* const x = reinterpret_cast<T*>(shared);
  constexpr int kSize = Pack<T>::kSize;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;

  float inverse_rms[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    inverse_rms[m] = 0;
    if (a.norm_weight != nullptr && m < a.rows) {
      inverse_rms[m] = InverseRms(static_cast<const T*>(a.in) + m * a.in_stride, a.cols, a.eps);
    }
  }
  const bool whole = a.tile >= a.padded;
  if (whole) {
    Stage<T, kRows>(x, a, inverse_rms, 0);
    __syncthreads();
  }

  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t base = int64_t{blockIdx.x} * kWarps; base < a.units; base += step) {
    const int64_t unit = base + warp;
    int64_t output[kOutputs];
#pragma unroll
    for (int r = 0; r < kOutputs; ++r) {
      output[r] = kGated ? unit + r * a.units : unit * kOutputs + r;
    }
    const bool mine = unit < a.units;
    // The last pair may have one output only; its other half repeats a row and is dropped.
    const Pack<T>* weights[kOutputs];
#pragma unroll
    for (int r = 0; r < kOutputs; ++r) {
      const int64_t row = mine && output[r] < a.outputs ? output[r] : 0;
      weights[r] =
          reinterpret_cast<const Pack<T>*>(static_cast<const T*>(a.weight) + row * a.padded);
    }
    float sum[kOutputs][kRows] = {};
    for (int64_t first = 0; first < a.padded; first += a.tile) {
      if (!whole) {
        __syncthreads();
        Stage<T, kRows>(x, a, inverse_rms, first);
        __syncthreads();
      }
      if (!mine) continue;
      const int64_t left = a.padded - first < a.tile ? a.padded - first : a.tile;
      const int packs = static_cast<int>(left) / kSize;
      const int64_t at = first / kSize;
      for (int v = lane; v < packs; v += kWarp * kUnroll) {
        Pack<T> w[kOutputs][kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (v + u * kWarp >= packs) continue;
#pragma unroll
          for (int r = 0; r < kOutputs; ++r)
            w[r][u] = LoadStreaming(weights[r] + at + v + u * kWarp);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (v + u * kWarp >= packs) continue;
#pragma unroll
          for (int m = 0; m < kRows; ++m) {
            const Pack<T> xs =
                *reinterpret_cast<const Pack<T>*>(x + m * a.tile + (v + u * kWarp) * kSize);
#pragma unroll
            for (int r = 0; r < kOutputs; ++r) {
#pragma unroll
              for (int j = 0; j < kSize; ++j) {
                sum[r][m] = fmaf(ToFloat(w[r][u].value[j]), ToFloat(xs.value[j]), sum[r][m]);
              }
            }
          }
        }
      }
    }
    if (!mine) continue;
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int r = 0; r < kOutputs; ++r) {
        sum[r][m] = ReduceWarp(sum[r][m], Plus{});
        if (a.bias != nullptr && output[r] < a.outputs) sum[r][m] += a.bias[output[r]];
      }
      if (lane != m || m >= a.rows) continue;
      Out* row = static_cast<Out*>(a.out) + m * a.out_stride;
      if (kGated) {
        row[unit] = FromFloat<Out>(Activate(a.activation, sum[0][m]) * sum[1][m]);
      } else {
#pragma unroll
        for (int r = 0; r < kOutputs; ++r) {
          if (output[r] >= a.outputs) continue;
          const float before = a.add ? ToFloat(row[output[r]]) : 0.0f;
          row[output[r]] = FromFloat<Out>(before + sum[r][m]);
        }
      }
    }
  }
}

template <class T, class Out, int kRows, bool kGated>
void Launch(Stream& s, const Product& p) {
  SmallArguments a = {ArgumentsOf(p), /*units=*/0, /*tile=*/0};
  a.units = kGated ? p.w.rows / 2 : (p.w.rows + kOutputs - 1) / kOutputs;
  // Tiles of whole rounds of the warp, so that lanes take the same inputs whatever the tile.
  constexpr int64_t kRound = kWarp * Pack<T>::kSize * kUnroll;
  const int64_t fits = kTileBytes / (kRows * sizeof(T)) / kRound * kRound;
  a.tile = std::min(a.padded, fits);
  const size_t bytes = kRows * a.tile * sizeof(T);
  const auto kernel = SmallProductKernel<T, Out, kRows, kGated>;
  const cudaStream_t stream = Native(s);  // makes its device current
  if (bytes > kSharedByDefault) {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)));
  }
  const int64_t blocks = std::min<int64_t>((a.units + kWarps - 1) / kWarps,
                                           int64_t{kBlocksPerMultiprocessor} * Multiprocessors(s));
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(a);
  CUDA_CHECK(cudaGetLastError());
}

// Groups of four rows: each reads the weights again, which the L2 cache makes bearable.
template <class T, class Out, bool kGated>
void LaunchRows(Stream& s, const Product& p) {
  constexpr int64_t kGroup = 4;
  const int64_t rows = p.in.rows();
  if (rows == 1) return Launch<T, Out, 1, kGated>(s, p);
  for (int64_t first = 0; first < rows; first += kGroup) {
    Product group = p;
    group.in = p.in.Rows(first, std::min(kGroup, rows - first));
    group.out = p.out.Rows(first, std::min(kGroup, rows - first));
    Launch<T, Out, kGroup, kGated>(s, group);
  }
}

}  // namespace

void SmallProduct(Stream& s, const Product& p) {
  CHECK_LE(p.in.rows(), kSmallRows);
  DispatchFloat(p.w.dtype, [&](auto type) {
    using T = decltype(type);
    if (p.gated) return LaunchRows<T, T, true>(s, p);
    if (p.out.dtype == p.w.dtype) return LaunchRows<T, T, false>(s, p);
    CHECK(p.out.dtype == DType::kF32) << Name(p.out.dtype);
    LaunchRows<T, float, false>(s, p);
  });
}

}  // namespace keyline::cuda
