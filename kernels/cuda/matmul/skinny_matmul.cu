// Products of up to 32 rows on tensor cores, in bf16 or f16: one pass over the weights, bound by
// reading them. Limit: bytes of the weight over read bandwidth.
//
// The weights are the rows of the multiplication (16 outputs a tile) and the activations its
// columns, so that few rows of activations waste little. A block has one tile, or several where the
// activations are many: every block reads all of them, and with one tile of weights that would be
// more than the weights. Its warps share the inputs, 64 at a time, and add up at the end. Weights
// come through shared memory, each warp's own part of it, several blocks of inputs ahead; copies
// begin before the predecessor has ended, because weights depend on nobody. Which of 32 inputs
// stands where in the multiplication does not matter as long as both sides agree, so a lane takes
// eight consecutive ones.
//
// An RMS norm needs the length of a row only at the end: its blocks meet all inputs anyway.
//
// A gate and its up projection are rows r and r + 8 of one tile.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul/activate.cuh"
#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/matmul/weight_layout.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {
namespace {

constexpr int kTileRows = 16;  // outputs of a tile
constexpr int kStep = 32;      // inputs of a warp at a time
constexpr int kBlock = 64;     // inputs that it copies at a time: 128 bytes, a line, of every row
constexpr int kStepsOfBlock = kBlock / kStep;
constexpr int kPieces = kBlock / 8;  // of 16 bytes, of a row
constexpr int kRowsOfLane = kTileRows * kPieces / kWarp;
constexpr int kMostWarps = 8;
constexpr size_t kBlockBytes = kTileRows * kBlock * 2;

// Blocks of inputs under way. Two thread blocks must find room on a multiprocessor, or a successor
// could not begin early.
constexpr int Depth(int tiles) { return tiles == 4 ? 3 : 4; }

// Of a thread block: its warps' rings, or what they add up in the end.
constexpr size_t SharedBytes(int warps, int tiles, int columns) {
  const size_t ring = size_t(warps) * Depth(tiles) * tiles * kBlockBytes;
  const size_t sums = size_t(warps) * (tiles * columns * 8 * kTileRows + 8) * sizeof(float);
  return std::max(ring, sums);
}

struct Arguments {
  void* out;
  int64_t out_stride;
  const void* in;
  int64_t in_stride;
  const void* weight;
  const float* bias;
  const float* norm_weight;
  float eps;
  int rows;         // of activations
  int64_t cols;     // inputs
  int64_t padded;   // the same in the weight
  int64_t outputs;  // rows of the weight
  bool float_out;   // out is float32
  bool add;
  bool gated;
  Activation activation;
};

// What a lane multiplies its weights with in a few blocks of inputs: of each step eight inputs of
// column lane / 4 of every tile of columns, zeros where there is no such row or input.
template <class T, int kColumns, bool kNorm>
struct Activations {
  static constexpr int kBlocks = kColumns == 1 && !kNorm ? 2 : 1;
  uint4 x[kBlocks][kStepsOfBlock][kColumns];
  float4 scale[kNorm ? kBlocks : 1][kStepsOfBlock][2];  // weights of the norm

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
  __device__ void Scale(int g, int h, float& squares) {
    const auto values = *reinterpret_cast<const Pack<T>*>(&x[g][h][0]);
    const float4(&by4)[2] = scale[g][h];
    const float by[8] = {by4[0].x, by4[0].y, by4[0].z, by4[0].w,
                         by4[1].x, by4[1].y, by4[1].z, by4[1].w};
    float normed[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = ToFloat(values.value[j]);
      squares = fmaf(value, value, squares);
      normed[j] = value * by[j];
    }
    x[g][h][0] = make_uint4(PackTwo<T>(normed[0], normed[1]), PackTwo<T>(normed[2], normed[3]),
                            PackTwo<T>(normed[4], normed[5]), PackTwo<T>(normed[6], normed[7]));
  }
};

// kColumns: tiles of 8 rows of activations. kTiles: of weights.
template <class T, int kColumns, int kTiles, bool kNorm>
__global__ void __launch_bounds__(kMostWarps* kWarp) SkinnyKernel(const Arguments a) {
  static_assert(!kNorm || kColumns == 1);
  extern __shared__ __align__(16) unsigned char shared[];
  LetSuccessorBegin();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  const int64_t first_tile = int64_t{blockIdx.x} * kTiles;

  // Rows that this lane copies; where there are fewer, row 0 again, and nothing comes of it.
  const int64_t half = a.gated ? a.outputs / 2 : 0;
  const T* from[kTiles][kRowsOfLane];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int q = 0; q < kRowsOfLane; ++q) {
      const int64_t tile = first_tile + t;
      const int r = q * (kWarp / kPieces) + lane / kPieces;  // of the tile
      int64_t row = a.gated ? tile * 8 + r % 8 + (r < 8 ? 0 : half) : tile * kTileRows + r;
      if (row >= a.outputs || (a.gated && tile * 8 + r % 8 >= half)) row = 0;
      from[t][q] = static_cast<const T*>(a.weight) + row * a.padded + lane % kPieces * 8;
    }
  }

  // Blocks of inputs go to the warps in turn.
  const int all = static_cast<int>(a.padded / kBlock);
  const int blocks = all <= warp ? 0 : (all - warp + warps - 1) / warps;
  constexpr int kDepth = Depth(kTiles);
  uint4* const ring = reinterpret_cast<uint4*>(shared + warp * kDepth * kTiles * kBlockBytes);
  // Piece p of row r of a tile; rows of odd number keep their halves the other way round, so that
  // the lanes that read together meet different banks.
  const auto place = [&](int i, int tile, int r, int p) {
    return ring + (i % kDepth * kTiles + tile) * (kTileRows * kPieces) + r * kPieces +
           (p ^ (r % 2 * 4));
  };
  const auto copy = [&](int i) {
    if (i < blocks) {
      const int at = (i * warps + warp) * kBlock;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int q = 0; q < kRowsOfLane; ++q) {
          const int r = q * (kWarp / kPieces) + lane / kPieces;
          CopyAsync16(place(i, t, r, lane % kPieces), from[t][q] + at, false);
        }
      }
    }
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) copy(i);
  WaitForPredecessor();

  // Activations come in groups of steps, one group ahead of the multiplication: their latency is
  // longer than a step.
  using Loads = Activations<T, kColumns, kNorm>;
  constexpr int kGroup = Loads::kBlocks;
  Loads next;
  next.Load(a, 0, blocks, warps);
  float sum[kTiles][kColumns][4] = {};
  float squares = 0;  // of column lane / 4, as far as this lane meets it
  for (int begin = 0; begin < blocks; begin += kGroup) {
    Loads now = next;
    next.Load(a, begin + kGroup, blocks, warps);
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const int i = begin + g;
      if (i >= blocks) break;
      __syncwarp();  // all lanes have read what is overwritten now
      copy(i + kDepth - 1);
      WaitForCopies<kDepth - 1>();
      __syncwarp();  // and see what the others have copied
#pragma unroll
      for (int h = 0; h < kStepsOfBlock; ++h) {
        if (kNorm) now.Scale(g, h, squares);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint4 upper = *place(i, t, lane / 4, h * 4 + lane % 4);
          const uint4 lower = *place(i, t, lane / 4 + 8, h * 4 + lane % 4);
          const uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
          const uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const uint4& x = now.x[g][h][c];
            MultiplyAdd<T>(sum[t][c], low, x.x, x.y);
            MultiplyAdd<T>(sum[t][c], high, x.z, x.w);
          }
        }
      }
    }
  }

  // The warps' sums: [warps][tiles][rows of activations][16], then squares [warps][8].
  WaitForCopies<0>();
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(shared);
  constexpr int kTileSums = kColumns * 8 * kTileRows;
  constexpr int kSums = kTiles * kTileSums;  // of a warp
  float* const all_squares = sums + warps * kSums;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = c * 8 + lane % 4 * 2 + j % 2;
        const int at = column * kTileRows + lane / 4 + j / 2 * 8;
        sums[warp * kSums + t * kTileSums + at] = sum[t][c][j];
      }
    }
  }
  if (kNorm) {
    squares += __shfl_xor_sync(kAllLanes, squares, 1);
    squares += __shfl_xor_sync(kAllLanes, squares, 2);
    if (lane % 4 == 0) all_squares[warp * 8 + lane / 4] = squares;
  }
  __syncthreads();
  const int outputs = a.gated ? 8 : kTileRows;  // of a tile
  for (int i = threadIdx.x; i < a.rows * kTiles * outputs; i += blockDim.x) {
    const int m = i / (kTiles * outputs);
    const int t = i / outputs % kTiles;
    const int r = i % outputs;
    const int64_t n = (first_tile + t) * outputs + r;
    if (n >= (a.gated ? half : a.outputs)) continue;
    float scale = 1;
    if (kNorm) {
      float square = 0;
      for (int w = 0; w < warps; ++w) square += all_squares[w * 8 + m];
      scale = 1.0f / sqrtf(square / static_cast<float>(a.cols) + a.eps);
    }
    const auto total = [&](int row, int64_t output) {
      float x = 0;
      for (int w = 0; w < warps; ++w) x += sums[w * kSums + t * kTileSums + m * kTileRows + row];
      return x * scale + (a.bias != nullptr ? a.bias[output] : 0.0f);
    };
    float value = total(r, n);
    if (a.gated) value = Activate(a.activation, value) * total(r + 8, half + n);
    const int64_t at = m * a.out_stride + n;
    if (a.float_out) {
      float* out = static_cast<float*>(a.out) + at;
      *out = a.add ? *out + value : value;
    } else {
      T* out = static_cast<T*>(a.out) + at;
      *out = FromFloat<T>(a.add ? ToFloat(*out) + value : value);
    }
  }
}

template <class T, int kColumns, int kTiles, bool kNorm>
void LaunchTiles(Stream& s, const Arguments& a, int64_t tiles, int warps) {
  LaunchDependent(s, SkinnyKernel<T, kColumns, kTiles, kNorm>,
                  dim3(static_cast<unsigned>((tiles + kTiles - 1) / kTiles)), warps * kWarp,
                  SharedBytes(warps, kTiles, kColumns), a);
}

template <class T>
void Launch(Stream& s, const Arguments& a) {
  const int64_t tiles = a.gated ? (a.outputs / 2 + 7) / 8 : (a.outputs + kTileRows - 1) / kTileRows;
  const int64_t few = 2 * Multiprocessors(s);
  // Few tiles need more warps each to keep the memory busy. By the shape of the weight alone: the
  // order of the sums depends on it. (How many tiles a block has does not change it.)
  const int warps = tiles <= few ? kMostWarps : kMostWarps / 2;
  if (a.norm_weight != nullptr) return LaunchTiles<T, 1, 1, true>(s, a, tiles, warps);
  if (a.rows <= 8) return LaunchTiles<T, 1, 1, false>(s, a, tiles, warps);
  // Several tiles a block only where that leaves every multiprocessor two blocks or more: fewer
  // read slower, whatever they save (measured on an H100).
  if (a.rows <= 16) {
    return tiles < 2 * few ? LaunchTiles<T, 2, 1, false>(s, a, tiles, warps)
                           : LaunchTiles<T, 2, 2, false>(s, a, tiles, warps);
  }
  if (tiles < 4 * few) return LaunchTiles<T, 4, 1, false>(s, a, tiles, warps);
  return LaunchTiles<T, 4, 4, false>(s, a, tiles, warps);
}

}  // namespace

bool TakesSkinny(const Product& p) {
  const int64_t rows = p.in.rows();
  return p.w.dtype != DType::kF32 && rows <= (p.norm_weight != nullptr ? 8 : kSkinnyRows) &&
         p.w.cols % 8 == 0 && p.in.strides[0] % 8 == 0 &&
         reinterpret_cast<uintptr_t>(p.in.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.norm_weight) % 16 == 0;
}

void SkinnyProduct(Stream& s, const Product& p) {
  CHECK(TakesSkinny(p));
  const Arguments a = {.out = p.out.data,
                       .out_stride = p.out.strides[0],
                       .in = p.in.data,
                       .in_stride = p.in.strides[0],
                       .weight = p.w.data,
                       .bias = p.w.bias,
                       .norm_weight = p.norm_weight,
                       .eps = p.eps,
                       .rows = static_cast<int>(p.in.rows()),
                       .cols = p.w.cols,
                       .padded = PaddedCols(p.w.cols),
                       .outputs = p.w.rows,
                       .float_out = p.out.dtype == DType::kF32,
                       .add = p.add,
                       .gated = p.gated,
                       .activation = p.activation};
  if (p.w.dtype == DType::kBF16) {
    Launch<__nv_bfloat16>(s, a);
  } else {
    Launch<__half>(s, a);
  }
}

}  // namespace keyline::cuda
