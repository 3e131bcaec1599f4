// Products of up to 32 rows with packed weights, on tensor cores: one pass over the weights, bound
// by reading them. Limit: bytes of the packed weight over read bandwidth.
//
// Codes become bf16 or f16 exactly and are multiplied as they are; each group of 32 inputs has a
// sum of its own, which its scale multiplies in float32. So the weights are not rounded. A min
// meets the sum of the group's activations, which the tensor cores add up as a product with ones.
//
// A lane's share of a tile is one load (packed_layout.h), so weights go straight into registers,
// several tiles ahead, beginning before the predecessor has ended.
//
// More rows, float32, and rows that begin where vectors do not: weights are turned into the type of
// the activations first, some outputs at a time, for the other products.
#include "kernels/cuda/matmul/packed_weights.cuh"
#include "kernels/cuda/matmul/skinny/tiles.cuh"

namespace keyline::cuda {
namespace skinny {
namespace {

constexpr int kTilesAhead = 4;

// Both tiles of 8 outputs that a block multiplies with 64 inputs.
template <class Lane>
struct Weights {
  Lane upper, lower;
};

template <class T, class Lane, int kColumns, bool kNorm>
__global__ void __launch_bounds__(kMostWarps* kWarp) PackedKernel(const Arguments a) {
  static_assert(!kNorm || kColumns == 1);
  static_assert(kBlock == kPackedCols && kStepsOfBlock == kPackedHalves);
  extern __shared__ __align__(16) unsigned char shared[];
  LetSuccessorBegin();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  const int64_t tile = blockIdx.x;

  // A gate and its up projection, or consecutive outputs; where there are no more, the first again,
  // and nothing comes of it.
  using Tile = typename Lane::Tile;
  const int64_t all = PackedTilesOf(a.cols);
  const int64_t all_rows = (a.outputs + kPackedRows - 1) / kPackedRows;
  const int64_t first = a.gated ? tile : 2 * tile;
  int64_t second = a.gated ? tile + a.outputs / 2 / kPackedRows : first + 1;
  if (second >= all_rows) second = first;
  const Tile* const upper = static_cast<const Tile*>(a.weight) + first * all;
  const Tile* const lower = static_cast<const Tile*>(a.weight) + second * all;

  // Tiles go to the warps in turn.
  const int blocks = all <= warp ? 0 : static_cast<int>((all - warp + warps - 1) / warps);
  Weights<Lane> ring[kTilesAhead];
  const auto load = [&](Weights<Lane>& to, int i) {
    if (i >= blocks) return;
    const int at = i * warps + warp;
    to.upper.Load(upper + at, lane);
    to.lower.Load(lower + at, lane);
  };
#pragma unroll
  for (int i = 0; i < kTilesAhead; ++i) load(ring[i], i);
  WaitForPredecessor();

  using Loads = Activations<T, kColumns, kNorm>;
  constexpr int kGroup = Loads::kBlocks;
  static_assert(kTilesAhead % kGroup == 0);
  Loads next;
  next.Load(a, 0, blocks, warps);
  float sum[1][kColumns][4] = {};  // of one tile
  float squares[kColumns] = {};    // of column lane / 4, as far as this lane meets it
  constexpr uint32_t kOne = CodesAs<T>::kOnes;
  const uint32_t ones[4] = {kOne, kOne, kOne, kOne};
  for (int begin = 0; begin < blocks; begin += kTilesAhead) {
#pragma unroll
    for (int d = 0; d < kTilesAhead; d += kGroup) {
      if (begin + d >= blocks) break;
      Loads now = next;
      next.Load(a, begin + d + kGroup, blocks, warps);
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const int i = begin + d + g;
        if (i >= blocks) break;
        const Weights<Lane> w = ring[d + g];
        load(ring[d + g], i + kTilesAhead);
#pragma unroll
        for (int h = 0; h < kStepsOfBlock; ++h) {
          if (kNorm) now.Scale(g, h, squares);
          uint32_t up[4], down[4];
          w.upper.template Codes<T>(h, up);
          w.lower.template Codes<T>(h, down);
          const ScaleAndMin of_upper = w.upper.Scale(h);
          const ScaleAndMin of_lower = w.lower.Scale(h);
          const uint32_t low[4] = {up[0], down[0], up[1], down[1]};
          const uint32_t high[4] = {up[2], down[2], up[3], down[3]};
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const uint4& x = now.x[g][h][c];
            float dot[4] = {};
            MultiplyAdd<T>(dot, low, x.x, x.y);
            MultiplyAdd<T>(dot, high, x.z, x.w);
            sum[0][c][0] = fmaf(of_upper.scale, dot[0], sum[0][c][0]);
            sum[0][c][1] = fmaf(of_upper.scale, dot[1], sum[0][c][1]);
            sum[0][c][2] = fmaf(of_lower.scale, dot[2], sum[0][c][2]);
            sum[0][c][3] = fmaf(of_lower.scale, dot[3], sum[0][c][3]);
            if (!Lane::kHasMin) continue;
            float plain[4] = {};  // sums of activations, the same in every row
            MultiplyAdd<T>(plain, ones, x.x, x.y);
            MultiplyAdd<T>(plain, ones, x.z, x.w);
            sum[0][c][0] = fmaf(of_upper.min, plain[0], sum[0][c][0]);
            sum[0][c][1] = fmaf(of_upper.min, plain[1], sum[0][c][1]);
            sum[0][c][2] = fmaf(of_lower.min, plain[2], sum[0][c][2]);
            sum[0][c][3] = fmaf(of_lower.min, plain[3], sum[0][c][3]);
          }
        }
      }
    }
  }
  FinishTiles<T, kColumns, 1, kNorm>(a, shared, tile, sum, squares);
}

template <class T, class Lane, int kColumns, bool kNorm>
void LaunchPacked(Stream& s, const Arguments& a) {
  const int64_t tiles = TilesOf(a);
  const int warps = WarpsFor(s, tiles);
  LaunchDependent(s, PackedKernel<T, Lane, kColumns, kNorm>, dim3(static_cast<unsigned>(tiles)),
                  warps * kWarp, SumsBytes(warps, 1, kColumns), a);
}

template <class T, class Lane>
void LaunchPackedColumns(Stream& s, const Arguments& a) {
  if (a.norm_weight != nullptr) return LaunchPacked<T, Lane, 1, true>(s, a);
  if (a.rows <= 8) return LaunchPacked<T, Lane, 1, false>(s, a);
  if (a.rows <= 16) return LaunchPacked<T, Lane, 2, false>(s, a);
  return LaunchPacked<T, Lane, 4, false>(s, a);
}

}  // namespace
}  // namespace skinny

namespace {

constexpr int kThreads = 256;
constexpr int kRunOfThread = 8;  // inputs: those that a lane of PackedKernel has of a half

// Rows [first, first + count) of the weight, row major as plain weights are (weight_layout.h).
template <class T, class Tile>
__global__ void DequantizeKernel(T* out, const Tile* tiles, int64_t first, int64_t count,
                                 int64_t cols) {
  const int64_t padded = PaddedCols(cols);
  const int64_t runs = padded / kRunOfThread;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count * runs) return;
  const int64_t row = i / runs;
  const int64_t col = i % runs * kRunOfThread;
  T* const to = out + row * padded + col;
#pragma unroll
  for (int j = 0; j < kRunOfThread; ++j) {
    const float value =
        col + j < cols ? PackedElement(tiles, PackedTilesOf(cols), first + row, col + j) : 0.0f;
    to[j] = FromFloat<T>(value);
  }
}

}  // namespace

bool TakesPacked(const Product& p) {
  return skinny::TakesRows(p, skinny::kNormedRows) && (!p.gated || p.w.rows / 2 % kPackedRows == 0);
}

void PackedProduct(Stream& s, const Product& p) {
  CHECK(TakesPacked(p));
  const Arguments a = ArgumentsOf(p);
  DispatchPacked(p.w.dtype, [&](auto lane) {
    using Lane = decltype(lane);
    if (p.in.dtype == DType::kBF16) return skinny::LaunchPackedColumns<__nv_bfloat16, Lane>(s, a);
    CHECK(p.in.dtype == DType::kF16) << Name(p.in.dtype);
    skinny::LaunchPackedColumns<__half, Lane>(s, a);
  });
}

void Dequantize(Stream& s, void* out, DType dtype, const Weight& w, int64_t first, int64_t count) {
  const int64_t threads = count * (PaddedCols(w.cols) / kRunOfThread);
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  DispatchFloat(dtype, [&](auto type) {
    using T = decltype(type);
    DispatchPacked(w.dtype, [&](auto lane) {
      using Tile = typename decltype(lane)::Tile;
      // A product begins with its weights before its predecessor has ended.
      LaunchApart(s, DequantizeKernel<T, Tile>, dim3(blocks), kThreads, 0, static_cast<T*>(out),
                  static_cast<const Tile*>(w.data), first, count, w.cols);
    });
  });
}

}  // namespace keyline::cuda
