// What the kernels of few rows on tensor cores share: skinny_matmul.cu and streamed_matmul.cu,
// whose weights are bf16 or f16, and packed_matmul.cu, whose weights are integers. All have the
// weights as the rows of the multiplication (16 outputs a tile) and the activations as its columns,
// so that few rows of activations waste little; a block has one tile or a few; its warps share the
// inputs, 64 at a time, and add up at the end. Which of 32 inputs stands where in the
// multiplication does not matter as long as both sides agree.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul/activate.cuh"
#include "kernels/cuda/matmul/arguments.cuh"
#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/matmul/weight_layout.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda::skinny {

constexpr int kTileRows = 16;  // outputs of a tile
constexpr int kStep = 32;      // inputs of a warp at a time
constexpr int kBlock = 64;     // inputs that it loads at a time
constexpr int kStepsOfBlock = kBlock / kStep;
constexpr int kMostWarps = 8;
constexpr int kNormedRows = 8;  // that a kernel norms which reads them from the L2 cache

// What a lane multiplies its weights with in a few blocks of inputs: of each step eight inputs of
// column lane / 4 of every tile of columns.
template <class T, int kColumns, bool kNorm>
struct Activations {
  static constexpr int kBlocks = kColumns == 1 && !kNorm ? 2 : 1;
  uint4 x[kBlocks][kStepsOfBlock][kColumns];
  float4 scale[kNorm ? kBlocks : 1][kStepsOfBlock][2];  // weights of the norm

  // From the L2 cache: eight consecutive inputs, zeros where there is no such row or input.
  __device__ void Load(const Arguments& a, int first, int blocks, int warps) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int g = 0; g < kBlocks; ++g) {
#pragma unroll
      for (int h = 0; h < kStepsOfBlock; ++h) {
        const int block = (first + g) * warps + threadIdx.x / kWarp;
        const int at = block * kBlock + h * kStep + lane % 4 * 8;
        const bool inside = first + g < blocks && at < a.cols;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int row = c * 8 + lane / 4;
          x[g][h][c] = make_uint4(0, 0, 0, 0);
          if (inside && row < a.rows) {
            x[g][h][c] = *reinterpret_cast<const uint4*>(static_cast<const T*>(a.in) +
                                                         row * a.in_stride + at);
          }
        }
        if (kNorm) scale[g][h][0] = scale[g][h][1] = make_float4(0, 0, 0, 0);
        if (kNorm && inside) {
          scale[g][h][0] = *reinterpret_cast<const float4*>(a.norm_weight + at);
          scale[g][h][1] = *reinterpret_cast<const float4*>(a.norm_weight + at + 4);
        }
      }
    }
  }

  // Multiplies a step by the weights of the norm and adds the squares of what it was.
  __device__ void Scale(int g, int h, float (&squares)[kColumns]) {
    const float4(&by4)[2] = scale[g][h];
    const float by[8] = {by4[0].x, by4[0].y, by4[0].z, by4[0].w,
                         by4[1].x, by4[1].y, by4[1].z, by4[1].w};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const auto values = *reinterpret_cast<const Pack<T>*>(&x[g][h][c]);
      float normed[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float value = ToFloat(values.value[j]);
        squares[c] = fmaf(value, value, squares[c]);
        normed[j] = value * by[j];
      }
      x[g][h][c] = make_uint4(PackTwo<T>(normed[0], normed[1]), PackTwo<T>(normed[2], normed[3]),
                              PackTwo<T>(normed[4], normed[5]), PackTwo<T>(normed[6], normed[7]));
    }
  }
};

// Adds up the sums of the block's first `warps` warps, kAtOnce tiles at a time in `shared` of
// SumsBytes, and writes the outputs that the tiles have, from `first` to before `end`. squares: of
// column lane / 4 of every tile of columns, as far as this lane has met them. sync: a barrier of
// those warps, all of whom are here. REQUIRES: none of them uses `shared` any more but through its
// own copies.
template <class T, int kColumns, int kTiles, bool kNorm, int kAtOnce = kTiles, class Sync>
__device__ void FinishTiles(const Arguments& a, unsigned char* shared, int64_t first, int64_t end,
                            const float (&sum)[kTiles][kColumns][4],
                            const float (&squares)[kColumns], int warps, const Sync& sync) {
  static_assert(kTiles % kAtOnce == 0);
  constexpr int kParts = kTiles / kAtOnce;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int threads = warps * kWarp;
  const int64_t half = a.gated ? a.outputs / 2 : 0;
  static_assert(kTileRows == 16 && (kAtOnce & (kAtOnce - 1)) == 0);  // so that nothing is divided
  const int outputs_log2 = a.gated ? 3 : 4;                          // of a tile
  const int outputs = 1 << outputs_log2;
  // The i-th output of a part: row m of the activations, row r of tile t, place n; -1: there is
  // none.
  const auto row_of = [&](int i) { return (i >> outputs_log2) / kAtOnce; };
  const auto tile_of = [&](int i) { return (i >> outputs_log2) % kAtOnce; };
  const auto place_of = [&](int part, int i) {
    const int t = part * kAtOnce + tile_of(i);
    const int64_t n = first + t * outputs + (i & (outputs - 1));
    return row_of(i) < a.rows && n < end ? n : -1;
  };
  const auto before = [&](int i, int64_t n) {  // what is added to
    const int64_t at = row_of(i) * a.out_stride + n;
    return a.float_out ? static_cast<const float*>(a.out)[at]
                       : ToFloat(static_cast<const T*>(a.out)[at]);
  };
  // Most threads have few outputs or none: what those are added to comes while sums are exchanged.
  constexpr int kSums = kAtOnce * kColumns * 8 * kTileRows;  // of a warp, of a part
  constexpr int kAhead = kSums < kMostWarps * kWarp ? 1 : kSums / (kMostWarps * kWarp);
  const int mine = threadIdx.x;
  float before_mine[kParts][kAhead];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const int i = mine + q * threads;
      const int64_t n = place_of(part, i);
      before_mine[part][q] = a.add && n >= 0 ? before(i, n) : 0.0f;
    }
  }
  // The warps' sums: [warps][tiles][rows of activations][16], then squares [warps][rows].
  float* const sums = reinterpret_cast<float*>(shared);
  constexpr int kTileSums = kColumns * 8 * kTileRows;
  // Output r of row m, such that lanes that write or read together meet different banks.
  const auto in_tile = [](int m, int r) {
    return (m * kTileRows + r) ^ (m / 2 % 2 * 8 + m / 4 % 2 * kTileRows);
  };
  float* const all_squares = sums + warps * kSums;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if (part > 0 && first + part * kAtOnce * outputs >= end) break;
    sync();
#pragma unroll
    for (int t = 0; t < kAtOnce; ++t) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = c * 8 + lane % 4 * 2 + j % 2;
          const int at = in_tile(column, lane / 4 + j / 2 * 8);
          sums[warp * kSums + t * kTileSums + at] = sum[part * kAtOnce + t][c][j];
        }
      }
    }
    if (kNorm && part == 0) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        float square = squares[c];
        square += __shfl_xor_sync(kAllLanes, square, 1);
        square += __shfl_xor_sync(kAllLanes, square, 2);
        if (lane % 4 == 0) all_squares[(warp * kColumns + c) * 8 + lane / 4] = square;
      }
    }
    sync();
    for (int i = mine; i < a.rows * kAtOnce * outputs; i += threads) {
      const int64_t n = place_of(part, i);
      if (n < 0) continue;
      const int m = row_of(i);
      const int t = tile_of(i);
      const int r = i & (outputs - 1);
      float scale = 1;
      if (kNorm) {
        float square = 0;
        for (int w = 0; w < warps; ++w) square += all_squares[w * kColumns * 8 + m];
        scale = 1.0f / sqrtf(square / static_cast<float>(a.cols) + a.eps);
      }
      const auto total = [&](int row, int64_t output) {
        float x = 0;
        for (int w = 0; w < warps; ++w) x += sums[w * kSums + t * kTileSums + in_tile(m, row)];
        return x * scale + (a.bias != nullptr ? a.bias[output] : 0.0f);
      };
      float value = total(r, n);
      if (a.gated) value = Activate(a.activation, value) * total(r + 8, half + n);
      if (a.add) {
        float added = 0;
        bool ahead = false;
#pragma unroll
        for (int q = 0; q < kAhead; ++q) {
          if (i != mine + q * threads) continue;
          added = before_mine[part][q];
          ahead = true;
        }
        value = (ahead ? added : before(i, n)) + value;
      }
      const int64_t at = m * a.out_stride + n;
      if (a.float_out) {
        static_cast<float*>(a.out)[at] = value;
      } else {
        static_cast<T*>(a.out)[at] = FromFloat<T>(value);
      }
    }
  }
}

__host__ __device__ inline int64_t OutputsOf(const Arguments& a) {
  return a.gated ? a.outputs / 2 : a.outputs;
}
__host__ __device__ constexpr int OutputsOfTile(bool gated) {
  return gated ? kTileRows / 2 : kTileRows;
}

// By all threads of a block that has kTiles tiles, from first_tile on.
template <class T, int kColumns, int kTiles, bool kNorm>
__device__ void FinishTiles(const Arguments& a, unsigned char* shared, int64_t first_tile,
                            const float (&sum)[kTiles][kColumns][4],
                            const float (&squares)[kColumns]) {
  const int64_t first = first_tile * OutputsOfTile(a.gated);
  const int64_t end = min(first + kTiles * OutputsOfTile(a.gated), OutputsOf(a));
  FinishTiles<T, kColumns, kTiles, kNorm>(a, shared, first, end, sum, squares, blockDim.x / kWarp,
                                          [] { __syncthreads(); });
}

constexpr size_t SumsBytes(int warps, int tiles, int columns) {
  return size_t(warps) * (tiles * kTileRows + 1) * columns * 8 * sizeof(float);
}

__host__ __device__ inline int64_t TilesOf(const Arguments& a) {
  return (OutputsOf(a) + OutputsOfTile(a.gated) - 1) / OutputsOfTile(a.gated);
}

// Few tiles need more warps each to keep the memory busy. By the shape of the weight alone: the
// order of the sums depends on it. (How many tiles a block has does not change it.)
inline int WarpsFor(Stream& s, int64_t tiles) {
  return tiles <= 2 * Multiprocessors(s) ? kMostWarps : kMostWarps / 2;
}

// Whether the rows of activations begin where vectors do, and are few enough: at most
// `normed_rows` where they are to be normed.
inline bool TakesRows(const Product& p, int64_t normed_rows) {
  const int64_t rows = p.in.rows();
  return p.in.dtype != DType::kF32 &&
         rows <= (p.norm_weight != nullptr ? normed_rows : kSkinnyRows) && p.w.cols % 8 == 0 &&
         p.in.strides[0] % 8 == 0 && reinterpret_cast<uintptr_t>(p.in.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.norm_weight) % 16 == 0;
}

}  // namespace keyline::cuda::skinny
