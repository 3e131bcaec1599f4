// Operations that take each row by itself: embedding, norm, gathering. Bound by memory: 16 bytes a
// load where rows allow it.
#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_check.cuh"
#include "kernels/cuda/matmul/packed_weights.cuh"
#include "kernels/cuda/matmul/weight_layout.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/ops/weight_blocks.h"

namespace keyline::cuda {
namespace {

constexpr int kMaxThreads = 512;

__device__ int32_t IdOf(const Batch& batch, int64_t token) {
  const int32_t id = batch.token_ids[token];
  return id == kDrawnToken ? batch.drawn[batch.chunk[batch.token_chunk[token]].lane] : id;
}

template <class To, class From, int kCount>
__global__ void EmbedKernel(To* out, int64_t out_stride, const Batch batch, const From* table,
                            int64_t rows, int64_t cols, int64_t table_stride, float scale) {
  const int64_t token = blockIdx.x;
  const int32_t id = IdOf(batch, token);
  DeviceCheck(id >= 0 && id < rows);
  const From* from = table + id * table_stride;
  To* to = out + token * out_stride;
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < cols; i += int64_t{blockDim.x} * kCount) {
    const auto in = *reinterpret_cast<const Run<From, kCount>*>(from + i);
    Run<To, kCount> result;
#pragma unroll
    for (int j = 0; j < kCount; ++j) result.value[j] = FromFloat<To>(ToFloat(in.value[j]) * scale);
    *reinterpret_cast<Run<To, kCount>*>(to + i) = result;
  }
}

// The same of a packed table.
template <class To, class Tile>
__global__ void EmbedPackedKernel(To* out, int64_t out_stride, const Batch batch, const Tile* table,
                                  int64_t rows, int64_t cols, float scale) {
  const int64_t token = blockIdx.x;
  const int32_t id = IdOf(batch, token);
  DeviceCheck(id >= 0 && id < rows);
  for (int64_t i = threadIdx.x; i < cols; i += blockDim.x) {
    out[token * out_stride + i] =
        FromFloat<To>(PackedElement(table, PackedTilesOf(cols), id, i) * scale);
  }
}

// A thread writes only what it alone has read, and after all have read: in and out may be the same.
template <class T, int kCount>
__global__ void NormKernel(T* out, int64_t out_stride, const T* in, int64_t in_stride, int64_t cols,
                           const float* weight, float eps) {
  const T* from = in + blockIdx.x * in_stride;
  T* to = out + blockIdx.x * out_stride;
  const float inverse_rms = InverseRms(from, cols, eps);
  for (int64_t i = int64_t{threadIdx.x} * kCount; i < cols; i += int64_t{kNormThreads} * kCount) {
    const auto x = *reinterpret_cast<const Run<T, kCount>*>(from + i);
    Run<T, kCount> result;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      result.value[j] = Normed(x.value[j], inverse_rms, weight[i + j]);
    }
    *reinterpret_cast<Run<T, kCount>*>(to + i) = result;
  }
}

// Unit: what divides a row and the distances between rows.
template <class Unit>
__global__ void GatherKernel(Unit* out, int64_t out_stride, const Unit* in, int64_t in_stride,
                             int64_t units, int64_t in_rows, const int32_t* rows) {
  const int32_t row = rows[blockIdx.x];
  DeviceCheck(row >= 0 && row < in_rows);
  const Unit* from = in + row * in_stride;
  Unit* to = out + blockIdx.x * out_stride;
  for (int64_t i = threadIdx.x; i < units; i += blockDim.x) to[i] = from[i];
}

// Whether every row of `t` begins at a multiple of 16 bytes and falls into whole runs.
bool TakesRuns(const TensorView& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 &&
         BytesOf(t.dtype, t.strides[0]) % 16 == 0 && t.cols() % kRun == 0;
}

// Threads for a row; of its length alone, because the order of its sum must not depend on more.
int ThreadsFor(int64_t cols) {
  const int64_t warps = (cols + kRun * kWarp - 1) / (kRun * kWarp);
  return static_cast<int>(std::min<int64_t>(warps * kWarp, kMaxThreads));
}

template <class T>
struct Type {
  using type = T;
};

}  // namespace

void Embed(Stream& s, TensorView hidden, const Batch& batch, const Weight& table, float scale) {
  const int threads = ThreadsFor(table.cols);
  const int64_t ld = PaddedCols(table.cols);
  if (IsPacked(table.dtype)) {
    DispatchFloat(hidden.dtype, [&](auto to) {
      using To = decltype(to);
      DispatchPacked(table.dtype, [&](auto lane) {
        using Tile = typename decltype(lane)::Tile;
        EmbedPackedKernel<<<batch.tokens, threads, 0, Native(s)>>>(
            hidden.as<To>(), hidden.strides[0], batch, static_cast<const Tile*>(table.data),
            table.rows, table.cols, scale);
      });
    });
    CUDA_CHECK(cudaGetLastError());
    return;
  }
  DispatchFloat(hidden.dtype, [&](auto to) {
    DispatchFloat(table.dtype, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      const auto kernel =
          TakesRuns(hidden) ? EmbedKernel<To, From, kRun> : EmbedKernel<To, From, 1>;
      kernel<<<batch.tokens, threads, 0, Native(s)>>>(hidden.as<To>(), hidden.strides[0], batch,
                                                      static_cast<const From*>(table.data),
                                                      table.rows, table.cols, ld, scale);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

void Norm(Stream& s, TensorView out, TensorView in, const RmsNorm& norm) {
  if (in.rows() == 0) return;
  DispatchFloat(in.dtype, [&](auto x) {
    using T = decltype(x);
    const auto kernel = TakesRuns(out) && TakesRuns(in) ? NormKernel<T, kRun> : NormKernel<T, 1>;
    kernel<<<in.rows(), kNormThreads, 0, Native(s)>>>(
        out.as<T>(), out.strides[0], in.as<T>(), in.strides[0], in.cols(), norm.weight, norm.eps);
  });
  CUDA_CHECK(cudaGetLastError());
}

void GatherRows(Stream& s, TensorView out, TensorView in, const int32_t* rows) {
  if (out.rows() == 0) return;
  CHECK(out.dtype == in.dtype) << Name(out.dtype) << " from " << Name(in.dtype);
  const size_t bytes = BytesOf(in.dtype, in.cols());
  const size_t in_stride = BytesOf(in.dtype, in.strides[0]);
  const size_t out_stride = BytesOf(out.dtype, out.strides[0]);
  const auto gather = [&](auto unit) {
    using Unit = typename decltype(unit)::type;
    constexpr size_t kSize = sizeof(Unit);
    const auto threads = std::min<size_t>((bytes / kSize + kWarp - 1) / kWarp * kWarp, kMaxThreads);
    GatherKernel<Unit><<<out.rows(), threads, 0, Native(s)>>>(out.as<Unit>(), out_stride / kSize,
                                                              in.as<Unit>(), in_stride / kSize,
                                                              bytes / kSize, in.rows(), rows);
  };
  const auto divisible = [&](size_t size) {
    return (reinterpret_cast<uintptr_t>(in.data) | reinterpret_cast<uintptr_t>(out.data) | bytes |
            in_stride | out_stride) %
               size ==
           0;
  };
  if (divisible(16)) {
    gather(Type<uint4>{});
  } else {
    gather(Type<uint16_t>{});
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
