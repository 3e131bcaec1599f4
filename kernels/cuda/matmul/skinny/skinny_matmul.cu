// Products of up to 32 rows on tensor cores, in bf16 or f16, on GPUs and with weights that
// streamed_matmul.cu is not for: one pass over the weights, bound by reading them. Limit: bytes of
// the weight over read bandwidth.
//
// A block has several tiles where the activations are many: every block reads all of them, and with
// one tile of weights that would be more than the weights. Weights come through shared memory, each
// warp's own part of it, several blocks of inputs ahead; copies begin before the predecessor has
// ended, because weights depend on nobody.
//
// An RMS norm needs the length of a row only at the end: its blocks meet all inputs anyway.
//
// A gate and its up projection are rows r and r + 8 of one tile.
#include <algorithm>

#include "kernels/cuda/matmul/skinny/tiles.cuh"

namespace keyline::cuda {
namespace skinny {
namespace {

constexpr int kPieces = kBlock / 8;  // of 16 bytes, of a row
constexpr int kRowsOfLane = kTileRows * kPieces / kWarp;
constexpr size_t kBlockBytes = kTileRows * kBlock * 2;

// Blocks of inputs under way. Two thread blocks must find room on a multiprocessor, or a successor
// could not begin early.
constexpr int Depth(int tiles) { return tiles == 4 ? 3 : 4; }

// Of a thread block: its warps' rings, or what they add up in the end.
constexpr size_t SharedBytes(int warps, int tiles, int columns) {
  const size_t ring = size_t(warps) * Depth(tiles) * tiles * kBlockBytes;
  return std::max(ring, SumsBytes(warps, tiles, columns));
}

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
  float squares[kColumns] = {};  // of column lane / 4, as far as this lane meets it
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
  WaitForCopies<0>();
  FinishTiles<T, kColumns, kTiles, kNorm>(a, shared, first_tile, sum, squares);
}

template <class T, int kColumns, int kTiles, bool kNorm>
void LaunchTiles(Stream& s, const Arguments& a, int64_t tiles, int warps) {
  LaunchDependent(s, SkinnyKernel<T, kColumns, kTiles, kNorm>,
                  dim3(static_cast<unsigned>((tiles + kTiles - 1) / kTiles)), warps * kWarp,
                  SharedBytes(warps, kTiles, kColumns), a);
}

template <class T>
void Launch(Stream& s, const Arguments& a) {
  const int64_t tiles = TilesOf(a);
  const int warps = WarpsFor(s, tiles);
  const int64_t few = 2 * Multiprocessors(s);
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
}  // namespace skinny

bool TakesSkinny(Stream& s, const Product& p) {
  return TakesStreamed(s, p) || (IsFloat(p.w.dtype) && skinny::TakesRows(p, skinny::kNormedRows));
}

void SkinnyProduct(Stream& s, const Product& p) {
  CHECK(TakesSkinny(s, p));
  if (TakesStreamed(s, p)) return StreamedProduct(s, p);
  const Arguments a = ArgumentsOf(p);
  if (p.w.dtype == DType::kBF16) {
    skinny::Launch<__nv_bfloat16>(s, a);
  } else {
    skinny::Launch<__half>(s, a);
  }
}

}  // namespace keyline::cuda
