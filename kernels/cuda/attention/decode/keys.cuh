// Logits of a warp's slots: q as one operand, in registers for as long as the lane and the KV head
// stay the same, and K as the other, read from shared memory as the cache stores it.
//
// Products have the slots as rows and up to kDecodeHeads query heads as columns. Lane i of a warp
// gets, of 16 slots, i / 4 (0, 1) and i / 4 + 8 (2, 3), heads 2 * (i % 4) and the next.
#pragma once

#include <type_traits>

#include "kernels/cuda/attention/attention_kernels.cuh"
#include "kernels/cuda/attention/decode/codes.cuh"
#include "kernels/cuda/attention/decode/rows.cuh"
#include "kernels/cuda/numbers.cuh"

namespace keyline::cuda {

// A product waits for the one before that adds to the same sum, so sums over a whole head_dim are
// taken as so many, which take turns.
constexpr int kChains = 2;

// Turned queries of up to kDecodeHeads heads, in device or shared memory.
struct DecodeQueries {
  const void* first;  // of the activations' type; each at a multiple of 8 bytes
  int pitch;          // from one to the next, elements
  int rows;
};

// K as it is, of the type of q.
template <KvFormat kFormat, int kDim>
class Keys {
  using T = std::conditional_t<kFormat == KvFormat::kBF16, __nv_bfloat16, __half>;
  using Rows = StoredRows<kFormat, kDim>;
  static_assert(kFormat == KvFormat::kBF16 || kFormat == KvFormat::kF16);

 public:
  static constexpr int kTiles = 1;  // of 16 slots, at a time

  __device__ void Load(const DecodeQueries& q, DType /*dtype*/) {
    const int lane = threadIdx.x % kWarp;
    const bool mine = lane / 4 < q.rows;
    const T* from = static_cast<const T*>(q.first) + (mine ? lane / 4 : 0) * q.pitch + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        q_[i][j] = mine ? *reinterpret_cast<const uint32_t*>(from + i * 16 + j * 8) : 0;
      }
    }
  }

  // s = K q. rows: of kTiles * 16 slots.
  __device__ void Multiply(float (&s)[kTiles][4], const std::byte* rows,
                           const float2* /*scales*/) const {
    const int lane = threadIdx.x % kWarp;
    float sums[kChains][4] = {};
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t k[4];  // slots 0..7 and 8..15 of 8 dimensions, and of the next 8
      LoadTiles(k, rows + Rows::Offset(lane % 16, 2 * i + lane / 16));
      MultiplyAdd<T>(sums[i % kChains], k, q_[i][0], q_[i][1]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) s[0][j] = sums[0][j] + sums[1][j];
  }

 private:
  uint32_t q_[kDim / 16][2];
};

// K as codes. q becomes f16, exactly but for what is 2^-24 of its largest number: it is taken times
// a power of two that brings that number to [1, 2), and the logit is taken times the inverse. In a
// block of codes, scale * (sum of q * code - zero * sum of q) is its part of the logit.
template <KvFormat kFormat, int kDim>
class CodedKeys {
  using Rows = StoredRows<kFormat, kDim>;
  static constexpr bool kNibbles = kFormat == KvFormat::kInt4;
  static constexpr int kBlocks = Rows::kScales;
  static constexpr int kOperands = Rows::kPacks * (kNibbles ? 2 : 1);  // of 16 dimensions

 public:
  static constexpr int kTiles = 2;

  __device__ void Load(const DecodeQueries& queries, DType dtype) {
    const int lane = threadIdx.x % kWarp;
    const bool mine = lane / 4 < queries.rows;
    const uint16_t* from =
        static_cast<const uint16_t*>(queries.first) + (mine ? lane / 4 : 0) * queries.pitch;
    float q[kOperands][4];
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
      const int first = FirstOf(i);
      const uint2 four =
          mine && first >= 0 ? *reinterpret_cast<const uint2*>(from + first) : make_uint2(0, 0);
      const uint32_t bits[4] = {four.x & 0xffff, four.x >> 16, four.y & 0xffff, four.y >> 16};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        q[i][j] = dtype == DType::kBF16
                      ? __uint_as_float(bits[j] << 16)
                      : ToFloat(__ushort_as_half(static_cast<unsigned short>(bits[j])));
        largest = fmaxf(largest, fabsf(q[i][j]));
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    constexpr uint32_t kOne = 1u << 23;  // of an exponent
    const uint32_t power = min(max(__float_as_uint(largest) & 0x7f800000u, kOne), 253 * kOne);
    const float down = __uint_as_float(254 * kOne - power);
    float sum[kBlocks] = {};
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // The codes of bytes j and j + 2 are one register.
        const __half2 two = __floats2half2_rn(q[i][j] * down, q[i][j + 2] * down);
        q_[i][j] = *reinterpret_cast<const uint32_t*>(&two);
        sum[kNibbles ? i / 2 : 0] += __low2float(two) + __high2float(two);
      }
    }
    // This lane's columns are other heads than its part of q.
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int of = (lane % 4 * 2 + j) * 4;
      up_[j] = __shfl_sync(kAllLanes, __uint_as_float(power), of);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        float all = sum[b];
        all += __shfl_xor_sync(kAllLanes, all, 1);
        all += __shfl_xor_sync(kAllLanes, all, 2);
        sum_[b][j] = __shfl_sync(kAllLanes, all, of);
      }
    }
  }

  // scales: [slots][kBlocks].
  __device__ void Multiply(float (&s)[kTiles][4], const std::byte* rows,
                           const float2* scales) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[n][j] = 0;
    }
    float products[kTiles][4];
    float others[kTiles][4];  // of every second pack, where blocks are whole rows
    Clear(others);
#pragma unroll
    for (int i = 0; i < Rows::kPacks; ++i) {
      if (kNibbles || i == 0) Clear(products);
      uint32_t codes[4];  // of 8 slots each
      LoadTiles(codes, rows + Rows::Offset(threadIdx.x % kWarp, i));
      if constexpr (kNibbles) {
        uint32_t low[2][4], high[2][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          SplitNibbles(codes[j], low[0][j], low[1][j], high[0][j], high[1][j]);
        }
        Add(products, high, q_[2 * i]);
        Add(products, low, q_[2 * i + 1]);
        AddBlock(s, products, scales, i);
      } else {
        uint32_t k[2][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) SplitBytes(codes[j], k[0][j], k[1][j]);
        static_assert(kChains == 2);
        Add(i % kChains == 0 ? products : others, k, q_[i]);
      }
    }
    if constexpr (!kNibbles) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) products[n][j] += others[n][j];
      }
      AddBlock(s, products, scales, 0);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[n][j] *= up_[j % 2];
    }
  }

 private:
  // The first of four dimensions that this lane has of an operand; < 0: of padding.
  __device__ static int FirstOf(int operand) {
    const int mine = threadIdx.x % 4 * 4;
    if (!kNibbles) return operand * 16 + mine;
    const int begin = operand / 2 * 32;
    const int half = min(32, kDim - begin) / 2;
    return mine < half ? begin + operand % 2 * half + mine : -1;
  }

  __device__ static void Clear(float (&products)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) products[n][j] = 0;
    }
  }

  // k: the even and the odd bytes' codes of four times 8 slots.
  __device__ static void Add(float (&products)[kTiles][4], const uint32_t (&k)[2][4],
                             const uint32_t (&q)[2]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const uint32_t of[4] = {k[0][2 * n], k[0][2 * n + 1], k[1][2 * n], k[1][2 * n + 1]};
      MultiplyAdd<__half>(products[n], of, q[0], q[1]);
    }
  }

  __device__ void AddBlock(float (&s)[kTiles][4], const float (&products)[kTiles][4],
                           const float2* scales, int block) const {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int slot = n * 16 + i * 8 + threadIdx.x % kWarp / 4;
        const float2 scale_zero = scales[slot * kBlocks + block];
        const float zero = scale_zero.y - CodeMiddle(kFormat);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          s[n][2 * i + j] = fmaf(scale_zero.x, fmaf(-zero, sum_[block][j], products[n][2 * i + j]),
                                 s[n][2 * i + j]);
        }
      }
    }
  }

  uint32_t q_[kOperands][2];
  float up_[2];            // of this lane's columns
  float sum_[kBlocks][2];  // of q, of a block, of this lane's columns
};

template <int kDim>
class Keys<KvFormat::kInt8, kDim> : public CodedKeys<KvFormat::kInt8, kDim> {};
template <int kDim>
class Keys<KvFormat::kInt4, kDim> : public CodedKeys<KvFormat::kInt4, kDim> {};

}  // namespace keyline::cuda
