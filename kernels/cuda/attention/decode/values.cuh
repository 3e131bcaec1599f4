// Sums of a warp's values, weighted: V as one operand, read from shared memory as the cache stores
// it, and the weights p~ as the other. Sums have the dimensions as rows and the query heads as
// columns.
#pragma once

#include <type_traits>

#include "kernels/cuda/attention/decode/codes.cuh"
#include "kernels/cuda/attention/decode/rows.cuh"

namespace keyline::cuda {

// V as it is.
template <KvFormat kFormat, int kDim>
class Values {
  using T = std::conditional_t<kFormat == KvFormat::kBF16, __nv_bfloat16, __half>;
  using Rows = StoredRows<kFormat, kDim>;

 public:
  static constexpr int kTiles = 1;  // of 16 slots, at a time

  __device__ void Clear() {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) o_[i][j] = 0;
    }
  }

  // o = shrink o + V^T p. p: as Keys::Multiply leaves logits; shrink: of this lane's two heads.
  __device__ void Add(const float (&p)[kTiles][4], const float (&shrink)[2], const std::byte* rows,
                      const float2* /*scales*/) {
    const int lane = threadIdx.x % kWarp;
    const uint32_t b0 = Transposed(PackTwo<T>(p[0][0], p[0][1]));
    const uint32_t b1 = Transposed(PackTwo<T>(p[0][2], p[0][3]));
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t v[4];  // 8 dimensions of slots 0..7, the next 8 of them, and both of slots 8..15
      LoadTilesTransposed(v, rows + Rows::Offset(lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
#pragma unroll
      for (int j = 0; j < 4; ++j) o_[i][j] *= shrink[j % 2];
      MultiplyAdd<T>(o_[i], v, b0, b1);
    }
  }

  // body(dimension, head of this lane's two, sum) for each of this lane's sums.
  template <class Body>
  __device__ void ForEach(const Body& body) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) body(i * 16 + j / 2 * 8 + lane / 4, j % 2, o_[i][j]);
    }
  }

 private:
  float o_[kDim / 16][4];
};

// V as codes. The sum of p~ * scale * (code - zero) over slots is taken as two: that of the weights
// p~ * scale, rounded to f16, times codes by tensor cores, and that of p~ * scale * zero apart, in
// float32. The weights are taken relative to the largest scale so far, so that they fit f16.
template <KvFormat kFormat, int kDim>
class CodedValues {
  using Rows = StoredRows<kFormat, kDim>;
  static constexpr bool kNibbles = kFormat == KvFormat::kInt4;
  static constexpr int kBlocks = Rows::kScales;
  static constexpr int kOperands = Rows::kPacks * (kNibbles ? 2 : 1);
  static constexpr float kLeastScale = 0x1p-23f;  // of the scheme

 public:
  static constexpr int kTiles = 2;

  __device__ void Clear() {
    unit_ = kLeastScale;
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) o_[i][j] = 0;
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) zero_[b][0] = zero_[b][1] = 0;
  }

  // scales: [slots][kBlocks].
  __device__ void Add(const float (&p)[kTiles][4], const float (&shrink)[2], const std::byte* rows,
                      const float2* scales) {
    const int lane = threadIdx.x % kWarp;
    // Of this lane's four slots.
    const auto scale_zero = [&](int n, int i, int block) {
      return scales[(n * 16 + i * 8 + lane / 4) * kBlocks + block];
    };
    float unit = unit_;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) unit = fmaxf(unit, scale_zero(i / 2, i % 2, b).x);
    }
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) {
      unit = fmaxf(unit, __shfl_xor_sync(kAllLanes, unit, offset));
    }
    const float inverse = __fdividef(1.0f, unit);
    const float old = unit_ * inverse;
    unit_ = unit;
    const float shrink_o[2] = {shrink[0] * old, shrink[1] * old};
    uint32_t weights[kTiles][2];
#pragma unroll
    for (int i = 0; i < Rows::kPacks; ++i) {
      if (kNibbles || i == 0) {
        zero_[i][0] *= shrink[0];
        zero_[i][1] *= shrink[1];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float2 s = scale_zero(n, j, i);
            const float first = p[n][2 * j] * s.x;
            const float second = p[n][2 * j + 1] * s.x;
            const float zero = s.y - CodeMiddle(kFormat);
            zero_[i][0] = fmaf(first, zero, zero_[i][0]);
            zero_[i][1] = fmaf(second, zero, zero_[i][1]);
            weights[n][j] = Transposed(PackTwo<__half>(first * inverse, second * inverse));
          }
        }
      }
      uint32_t codes[4];  // 16 bytes of 8 slots each, turned over
      LoadTilesTransposed(codes, rows + Rows::Offset(lane, i));
      if constexpr (kNibbles) {
        uint32_t low[2][4], high[2][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          SplitNibbles(codes[j], low[0][j], low[1][j], high[0][j], high[1][j]);
        }
        AddOperand(o_[2 * i], high, weights, shrink_o);
        AddOperand(o_[2 * i + 1], low, weights, shrink_o);
      } else {
        uint32_t v[2][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) SplitBytes(codes[j], v[0][j], v[1][j]);
        AddOperand(o_[i], v, weights, shrink_o);
      }
    }
  }

  template <class Body>
  __device__ void ForEach(const Body& body) const {
    float zero[kBlocks][2];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        zero[b][j] = zero_[b][j];
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) {
          zero[b][j] += __shfl_xor_sync(kAllLanes, zero[b][j], offset);
        }
      }
    }
    const int pair = threadIdx.x % kWarp / 4 * 2;  // of a pack's bytes
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
      const int begin = kNibbles ? i / 2 * 32 : i * 16;
      const int half = kNibbles ? min(32, kDim - begin) / 2 : 16;
      if (pair >= half) continue;  // padding
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        body(begin + (kNibbles ? i % 2 * half : 0) + pair + j / 2, j % 2,
             fmaf(unit_, o_[i][j], -zero[kNibbles ? i / 2 : 0][j % 2]));
      }
    }
  }

 private:
  // v: the even and the odd bytes' codes of four times 8 slots.
  __device__ static void AddOperand(float (&o)[4], const uint32_t (&v)[2][4],
                                    const uint32_t (&weights)[kTiles][2],
                                    const float (&shrink)[2]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) o[j] *= shrink[j % 2];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const uint32_t of[4] = {v[0][2 * n], v[1][2 * n], v[0][2 * n + 1], v[1][2 * n + 1]};
      MultiplyAdd<__half>(o, of, weights[n][0], weights[n][1]);
    }
  }

  float unit_;  // of the weights: the largest scale so far
  float o_[kOperands][4];
  float zero_[kBlocks][2];  // this lane's part
};

template <int kDim>
class Values<KvFormat::kInt8, kDim> : public CodedValues<KvFormat::kInt8, kDim> {};
template <int kDim>
class Values<KvFormat::kInt4, kDim> : public CodedValues<KvFormat::kInt4, kDim> {};

}  // namespace keyline::cuda
