// Norm and turn of head vectors in registers, where all of a head's dimensions turn. A warp a
// vector of 32 * kEach dimensions: lane i has kEach from i * kEach on, and lane i ^ 16 has what
// they turn with. What a warp's vectors have in common it reads once.
#pragma once

#include "kernels/cuda/device_check.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops/batch.h"

namespace keyline::cuda {

// What a lane has of a vector in memory that begins at a multiple of its size.
template <int kEach, class T>
struct alignas(kEach * sizeof(T)) HeadPiece {
  T value[kEach];

  __device__ static HeadPiece& Of(T* vector) {
    return reinterpret_cast<HeadPiece*>(vector)[threadIdx.x % kWarp];
  }
  __device__ static const HeadPiece& Of(const T* vector) {
    return reinterpret_cast<const HeadPiece*>(vector)[threadIdx.x % kWarp];
  }

  __device__ void ToFloats(float (&x)[kEach]) const {
#pragma unroll
    for (int j = 0; j < kEach; ++j) x[j] = ToFloat(value[j]);
  }
  __device__ static HeadPiece FromFloats(const float (&x)[kEach]) {
    HeadPiece piece;
#pragma unroll
    for (int j = 0; j < kEach; ++j) piece.value[j] = FromFloat<T>(x[j]);
    return piece;
  }
};

template <int kEach>
class HeadTurn {
 public:
  static constexpr int kDim = kEach * kWarp;

  __device__ HeadTurn(const Rope& rope, int32_t position) {
    DeviceCheck(position >= 0 && position < rope.positions);
    const int first = threadIdx.x % (kWarp / 2) * kEach;
    const auto* const from =
        reinterpret_cast<const float4*>(rope.table + (int64_t{position} * (kDim / 2) + first) * 2);
#pragma unroll
    for (int j = 0; j < kEach / 2; ++j) turn_[j] = from[j];
  }

  __device__ void Norm(const RmsNorm& norm, float (&x)[kEach]) const {
    if (norm.weight == nullptr) return;
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) squares = fmaf(x[j], x[j], squares);
    squares = ReduceWarp(squares, Plus());
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(kDim) + norm.eps);
    const float* const weight = norm.weight + threadIdx.x % kWarp * kEach;
#pragma unroll
    for (int j = 0; j < kEach; ++j) x[j] = x[j] * scale * weight[j];
  }

  __device__ void Turn(float (&x)[kEach]) const {
    const bool leads = threadIdx.x % kWarp < kWarp / 2;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const float cosine = j % 2 == 0 ? turn_[j / 2].x : turn_[j / 2].z;
      const float sine = j % 2 == 0 ? turn_[j / 2].y : turn_[j / 2].w;
      const float other = __shfl_xor_sync(kAllLanes, x[j], kWarp / 2);
      // As the CPU rounds it.
      const float along = __fmul_rn(x[j], cosine);
      const float across = __fmul_rn(other, sine);
      x[j] = leads ? __fsub_rn(along, across) : __fadd_rn(along, across);
    }
  }

 private:
  float4 turn_[kEach / 2];  // cosine and sine of two dimensions each
};

// Of a vector in registers: the L2 norm, and that of what is lost where x becomes `stored`.
template <int kEach>
__device__ float NormOf(const float (&x)[kEach]) {
  double squares = 0;
#pragma unroll
  for (const float of : x) squares += static_cast<double>(of) * of;
  return static_cast<float>(sqrt(ReduceWarp(squares, Plus())));
}
template <int kEach, class T>
__device__ float LostOf(const float (&x)[kEach], const HeadPiece<kEach, T>& stored) {
  double squares = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const double difference = static_cast<double>(x[j]) - ToFloat(stored.value[j]);
    squares += difference * difference;
  }
  return static_cast<float>(sqrt(ReduceWarp(squares, Plus())));
}

// Dimensions of a lane where HeadTurn does it; 0: it does not.
__host__ __device__ inline int EachOfHeadTurn(int head_dim, const Rope& rope) {
  return rope.rotary_dim != head_dim ? 0 : head_dim == 64 ? 2 : head_dim == 128 ? 4 : 0;
}

}  // namespace keyline::cuda
