// Products of up to 64 rows on tensor cores, in bf16 or f16: one pass over the weights, bound by
// reading them. Limit: bytes of the weight over read bandwidth.
//
// The weights are the rows of the multiplication (16 outputs a tile) and the activations its
// columns, so that few rows of activations waste little. A block has one tile; its warps share the
// inputs, 32 at a time, and add up at the end. Every lane copies through shared memory just the 16
// bytes that it multiplies itself, several steps ahead: no barrier stands in the loop. Which of the
// 32 inputs stands where in the multiplication does not matter as long as both sides agree, so a
// lane takes eight consecutive ones. Copies begin before the predecessor has ended: weights depend
// on nobody.
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

constexpr int kTileRows = 16;  // outputs of a block
constexpr int kStep = 32;      // inputs of a warp at a time
constexpr int kDepth = 8;      // steps under way, a power of two
constexpr int kMostWarps = 8;
constexpr size_t kStepBytes = kTileRows * kStep * 2;

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

// What a lane multiplies its weights with in a few steps: eight inputs of column lane / 4 of every
// tile of columns, zeros where there is no such row or input.
template <class T, int kColumns, bool kNorm>
struct Activations {
  static constexpr int kSteps = kNorm || kColumns == 2 ? 2 : kColumns == 1 ? 4 : 1;
  uint4 x[kSteps][kColumns];
  float4 scale[kNorm ? kSteps : 1][2];  // weights of the norm

  template <class InputOf>
  __device__ void Load(const Arguments& a, int first, int steps, int piece,
                       const InputOf& input_of) {
    const int column = threadIdx.x % kWarp / 4;
#pragma unroll
    for (int g = 0; g < kSteps; ++g) {
      const int at = input_of(first + g) + piece;
      const bool inside = first + g < steps && at < a.cols;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int row = c * 8 + column;
        x[g][c] = make_uint4(0, 0, 0, 0);
        if (inside && row < a.rows) {
          x[g][c] =
              *reinterpret_cast<const uint4*>(static_cast<const T*>(a.in) + row * a.in_stride + at);
        }
      }
      if (kNorm) scale[g][0] = scale[g][1] = make_float4(0, 0, 0, 0);
      if (kNorm && inside) {
        scale[g][0] = *reinterpret_cast<const float4*>(a.norm_weight + at);
        scale[g][1] = *reinterpret_cast<const float4*>(a.norm_weight + at + 4);
      }
    }
  }

  // Multiplies step g by the weights of the norm and adds the squares of what it was.
  __device__ void Scale(int g, float& squares) {
    const auto values = *reinterpret_cast<const Pack<T>*>(&x[g][0]);
    const float by[8] = {scale[g][0].x, scale[g][0].y, scale[g][0].z, scale[g][0].w,
                         scale[g][1].x, scale[g][1].y, scale[g][1].z, scale[g][1].w};
    float normed[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float value = ToFloat(values.value[j]);
      squares = fmaf(value, value, squares);
      normed[j] = value * by[j];
    }
    x[g][0] = make_uint4(PackTwo<T>(normed[0], normed[1]), PackTwo<T>(normed[2], normed[3]),
                         PackTwo<T>(normed[4], normed[5]), PackTwo<T>(normed[6], normed[7]));
  }
};

// kColumns: tiles of 8 rows of activations.
template <class T, int kColumns, bool kNorm>
__global__ void __launch_bounds__(kMostWarps* kWarp) SkinnyKernel(const Arguments a) {
  static_assert(!kNorm || kColumns == 1);
  extern __shared__ __align__(16) unsigned char shared[];
  LetSuccessorBegin();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  const int64_t tile = blockIdx.x;

  // This lane's two outputs; where there are fewer, row 0 again, and nothing comes of it.
  const int64_t half = a.gated ? a.outputs / 2 : 0;
  int64_t first = a.gated ? tile * 8 + lane / 4 : tile * kTileRows + lane / 4;
  int64_t second = a.gated ? half + first : first + 8;
  if (first >= (a.gated ? half : a.outputs)) first = 0;
  if (second >= a.outputs) second = 0;
  const int piece = lane % 4 * 8;  // of the 32 inputs of a step
  const T* const weights = static_cast<const T*>(a.weight);
  const T* const from[2] = {weights + first * a.padded + piece,
                            weights + second * a.padded + piece};

  // Steps go to warps in pairs: two steps are 128 bytes of a row.
  const int pairs = static_cast<int>(a.padded / (2 * kStep));
  const int steps = pairs <= warp ? 0 : (pairs - warp + warps - 1) / warps * 2;
  const auto input_of = [&](int i) { return ((i / 2 * warps + warp) * 2 + i % 2) * kStep; };
  uint4* const ring = reinterpret_cast<uint4*>(shared + warp * kDepth * kStepBytes) + lane;
  const auto copy = [&](int i) {
    if (i < steps) {
      uint4* to = ring + i % kDepth * (2 * kWarp);
      const int at = input_of(i);
      CopyAsync16(to, from[0] + at, false);
      CopyAsync16(to + kWarp, from[1] + at, false);
    }
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) copy(i);
  WaitForPredecessor();

  // Activations come in groups of steps, one group ahead of the multiplication: their latency is
  // longer than a step.
  using Loads = Activations<T, kColumns, kNorm>;
  constexpr int kGroup = Loads::kSteps;
  Loads next;
  next.Load(a, 0, steps, piece, input_of);
  float sum[kColumns][4] = {};
  float squares = 0;  // of column lane / 4, as far as this lane meets it
  for (int begin = 0; begin < steps; begin += kGroup) {
    Loads now = next;
    next.Load(a, begin + kGroup, steps, piece, input_of);
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const int i = begin + g;
      if (i >= steps) break;
      if (kNorm) now.Scale(g, squares);
      copy(i + kDepth - 1);
      WaitForCopies<kDepth - 1>();
      const uint4 upper = ring[i % kDepth * (2 * kWarp)];
      const uint4 lower = ring[i % kDepth * (2 * kWarp) + kWarp];
      const uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
      const uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        MultiplyAdd<T>(sum[c], low, now.x[g][c].x, now.x[g][c].y);
        MultiplyAdd<T>(sum[c], high, now.x[g][c].z, now.x[g][c].w);
      }
    }
  }

  // The warps' sums: [warps][rows of activations][16], then squares [warps][8].
  WaitForCopies<0>();
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(shared);
  constexpr int kSums = kColumns * 8 * kTileRows;  // of a warp
  float* const all_squares = sums + kMostWarps * kSums;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = c * 8 + lane % 4 * 2 + j % 2;
      sums[warp * kSums + column * kTileRows + lane / 4 + j / 2 * 8] = sum[c][j];
    }
  }
  if (kNorm) {
    squares += __shfl_xor_sync(kAllLanes, squares, 1);
    squares += __shfl_xor_sync(kAllLanes, squares, 2);
    if (lane % 4 == 0) all_squares[warp * 8 + lane / 4] = squares;
  }
  __syncthreads();
  const int outputs = a.gated ? 8 : kTileRows;  // of this tile
  for (int i = threadIdx.x; i < a.rows * outputs; i += blockDim.x) {
    const int m = i / outputs;
    const int r = i % outputs;
    const int64_t n = tile * outputs + r;
    if (n >= (a.gated ? half : a.outputs)) continue;
    float scale = 1;
    if (kNorm) {
      float square = 0;
      for (int w = 0; w < warps; ++w) square += all_squares[w * 8 + m];
      scale = 1.0f / sqrtf(square / static_cast<float>(a.cols) + a.eps);
    }
    const auto total = [&](int row, int64_t output) {
      float x = 0;
      for (int w = 0; w < warps; ++w) x += sums[w * kSums + m * kTileRows + row];
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

template <class T, int kColumns, bool kNorm>
void Launch(Stream& s, const Arguments& a) {
  const int64_t tiles = a.gated ? (a.outputs / 2 + 7) / 8 : (a.outputs + kTileRows - 1) / kTileRows;
  // Few tiles need more warps each to keep the memory busy. By the shape of the weight alone: the
  // order of the sums depends on it.
  const int warps = tiles <= 2 * Multiprocessors(s) ? kMostWarps : kMostWarps / 2;
  const size_t ring = warps * kDepth * kStepBytes;
  const size_t sums =
      (size_t(kMostWarps) * kColumns * 8 * kTileRows + kMostWarps * 8) * sizeof(float);
  LaunchDependent(s, SkinnyKernel<T, kColumns, kNorm>, dim3(static_cast<unsigned>(tiles)),
                  warps * kWarp, std::max(ring, sums), a);
}

template <class T>
void LaunchColumns(Stream& s, const Arguments& a) {
  if (a.norm_weight != nullptr) return Launch<T, 1, true>(s, a);
  if (a.rows <= 8) return Launch<T, 1, false>(s, a);
  if (a.rows <= 16) return Launch<T, 2, false>(s, a);
  if (a.rows <= 32) return Launch<T, 4, false>(s, a);
  return Launch<T, 8, false>(s, a);
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
    LaunchColumns<__nv_bfloat16>(s, a);
  } else {
    LaunchColumns<__half>(s, a);
  }
}

}  // namespace keyline::cuda
