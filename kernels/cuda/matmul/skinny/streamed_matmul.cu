// Products of up to 32 rows on tensor cores, in bf16 or f16, on GPUs of compute capability 9.0 and
// later that have its shared memory: the weights stream through every multiprocessor without a
// pause. Limit: bytes of the weight over read bandwidth.
//
// One block a multiprocessor has consecutive outputs of the weight, in tiles (tiles.cuh), a few at
// a time, which share the activations that they are multiplied with. Its weights run through a ring
// of most of the shared memory: what is on its way bridges the ends of tiles, and the start of this
// kernel, since weights depend on nobody and begin to come before the predecessor has ended. Eight
// warps multiply: of each stage of the ring, kInputs inputs of a tile, a warp has 64. One thread
// fills the ring, by copies of a whole stage each; another fills a second ring with activations.
//
// Copies of single rows, 16 a stage, came to 4.25 TB/s of an H200's 4.59 where whole stages come to
// 4.48: a multiprocessor begins a copy every 40 ns or so, whatever its size.
//
// What many rows cost is the activations, which come from the L2 cache again for every group of
// tiles: for each byte of weights rows / (16 * tiles) of theirs. So the blocks of a cluster, whose
// tiles differ, share them: each copies some of the inputs, to all.
//
// What else was tried to keep the memory busy between products, and what it came to, is in
// README.md.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/matmul/skinny/stages.cuh"
#include "kernels/cuda/matmul/skinny/tensor_map.h"

namespace keyline::cuda {
namespace skinny {
namespace {

// How the copies see the weight and the activations.
struct Maps {
  CUtensorMap weight;       // of a tile's stage, at (0, output, 0, block of inputs)
  CUtensorMap piece;        // of a piece's, alike
  CUtensorMap activations;  // of a stage, or what a block of the cluster copies of it, at (0, 0,
                            // block of inputs)
};

// By one thread.
template <int kColumns>
__device__ void FillWeights(const Arguments& a, const Maps& maps, const Walk<kColumns>& walk,
                            Shared<kColumns>& shared) {
  constexpr int kStages = Shared<kColumns>::kWeightStages;
  const int of_tile = OutputsOfTile(a.gated);
  const int of_piece = OutputsOfPiece(a.gated);
  RingPlace<kStages> at;
  RingPlace<kStages> before;  // kInFlight stages behind
  int left = kInFlight;       // until there is one
  int first = walk.first;
  // Nothing is unrolled: one thread runs this, and its first copy waits for the instructions.
#pragma unroll 1
  for (int group = 0; group < walk.groups; first += walk.tiles_of(group) * of_tile, ++group) {
    const int tiles = walk.tiles_of(group);
    const bool ends = first + tiles * of_tile >= walk.end;
    const int rest = ends && tiles > 0 ? walk.rest : 0;
#pragma unroll 1
    for (int i = 0; i < walk.stages; ++i) {
#pragma unroll 1
      for (int t = 0; t < tiles; ++t) {
        if (at.phase > 0) shared.weights_free[at.stage].Wait(at.phase - 1);
        if (left > 0) {
          --left;
        } else {
          shared.weights_full[before.stage].Wait(before.phase);
          before.Next();
        }
        Barrier& full = shared.weights_full[at.stage];
        unsigned char* const to = shared.weights[at.stage].rows;
        const int output = first + t * of_tile;
        const int input = i * kMultiplyWarps;
        if (rest == 0 || t + 1 < tiles) {
          full.ArriveExpecting(sizeof(WeightStage));
          CopyBox(to, maps.weight, {0, output, 0, input}, full, kReadOnce);
        } else {
          full.ArriveExpecting(rest * kPieceBytes);
#pragma unroll 1
          for (int p = 0; p < rest; ++p) {
            CopyBox(to + p * kPieceBytes, maps.piece, {0, output + p * of_piece, 0, input}, full,
                    kReadOnce);
          }
        }
        at.Next();
      }
    }
  }
}

// By one thread.
template <int kColumns, bool kNorm>
__device__ void FillActivations(const Arguments& a, const Maps& maps, const Walk<kColumns>& walk,
                                Shared<kColumns>& shared) {
  constexpr int kStages = Shared<kColumns>::kActivationStages;
  constexpr int kCluster = Shared<kColumns>::kCluster;
  constexpr int kBlocks = kMultiplyWarps / kCluster;  // that each block of the cluster copies
  constexpr uint16_t kAll = (1 << kCluster) - 1;
  const int mine = blockIdx.x % kCluster;
  const int rows = RowsOfStage<kColumns>(a);
  RingPlace<kStages> place;
  for (int group = 0; group < walk.groups; ++group) {
    for (int i = 0; i < walk.stages; ++i, place.Next()) {
      const int at = i * kInputs;
      const auto inputs = static_cast<uint32_t>(min(static_cast<int>(a.cols) - at, kInputs));
      if (place.phase > 0) shared.activations_free[place.stage].Wait(place.phase - 1);
      auto& to = shared.activations[place.stage];
      Barrier& full = shared.activations_full[place.stage];
      full.ArriveExpecting(rows * kMultiplyWarps * kRowBytes + (kNorm ? inputs * 4 : 0));
      const int block = mine * kBlocks;
      unsigned char* const to_rows = to.rows + block * rows * kRowBytes;
      if constexpr (kCluster == 1) {
        CopyBox(to_rows, maps.activations, {0, 0, i * kMultiplyWarps}, full);
        if (kNorm) CopyBulk(to.scale, a.norm_weight + at, inputs * 4, full);
      } else {
        CopyBoxToBlocks(to_rows, maps.activations, {0, 0, i * kMultiplyWarps + block}, full, kAll);
        if (kNorm && mine == kCluster - 1)
          CopyBulkToBlocks(to.scale, a.norm_weight + at, inputs * 4, full, kAll);
      }
    }
  }
  if constexpr (kCluster > 1) {
    // No block leaves before the others have what it copies to them, and have arrived at its
    // barriers for the last time.
    for (int i = 0; i < kStages; ++i, place.Next()) {
      if (place.phase > 0) shared.activations_free[place.stage].Wait(place.phase - 1);
    }
  }
}

// How far a warp that multiplies has come in the rings.
template <int kColumns>
struct Met {
  RingPlace<Sizes<kColumns>::kActivationStages> activations;
  RingPlace<Sizes<kColumns>::kWeightStages> weights;
};

// All inputs of a group of kTiles tiles, the last of which is at last_at (WeightAt). squares: of
// column lane / 4, as far as this lane meets it. Of a warp's block of 64 inputs, LoadTiles takes
// the weights of 16 or the activations of 32 at a time, and chunk c ^ n of a row is chunk c plus n
// where it begins at a multiple of 128 bytes.
template <class T, int kColumns, bool kNorm, int kTiles>
__device__ __forceinline__ void MultiplyGroup(
    const Arguments& a, int stages, int last_at, Shared<kColumns>& shared, Met<kColumns>& met,
    float (&sum)[Sizes<kColumns>::kTilesTogether][kColumns][4], float (&squares)[kColumns]) {
  constexpr int kPair = Shared<kColumns>::kPair;
  constexpr int kCluster = Shared<kColumns>::kCluster;
  constexpr int kSteps = kBlock / 16;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int rows = RowsOfStage<kColumns>(a);
  const int weight_at = WeightAt(a.gated, /*rest=*/false);
  int activation_at[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    // Where there are fewer rows, the last again, and nothing comes of it.
    activation_at[c] = Swizzled(warp * rows + min(c * 8 + lane % 8, rows - 1), lane / 8);
  }
#pragma unroll 1
  for (int i = 0; i < stages; ++i, met.activations.Next()) {
    Activations<T, kColumns, kNorm> x;
    {
      const int stage = met.activations.stage;
      shared.activations_full[stage].Wait(met.activations.phase);
      const auto& from = shared.activations[stage];
#pragma unroll
      for (int h = 0; h < kStepsOfBlock; ++h) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          uint32_t tiles[4];
          LoadTiles(tiles, from.rows + (activation_at[c] ^ h * 64));
          x.x[0][h][c] = make_uint4(tiles[0], tiles[1], tiles[2], tiles[3]);
        }
        if (kNorm) {
          const float* const scale = from.scale + warp * kBlock + h * kStep + lane % 4 * 2;
          float2 of[4];
#pragma unroll
          for (int q = 0; q < 4; ++q) of[q] = *reinterpret_cast<const float2*>(scale + q * 8);
          x.scale[0][h][0] = make_float4(of[0].x, of[0].y, of[1].x, of[1].y);
          x.scale[0][h][1] = make_float4(of[2].x, of[2].y, of[3].x, of[3].y);
        }
      }
      if (kNorm) __syncwarp();  // LoadTiles is of the whole warp, but loads of scales are not
      if constexpr (kCluster == 1) {
        if (lane == 0) shared.activations_free[stage].Arrive();
      } else {  // all of the cluster write there
        if (lane < kCluster) shared.activations_free[stage].ArriveAt(lane);
      }
    }
    // Behind the last input are zeros, which have no weight of the norm.
    if (kNorm && i * kInputs + warp * kBlock < a.cols) {
#pragma unroll
      for (int h = 0; h < kStepsOfBlock; ++h) x.Scale(0, h, squares);
    }
#pragma unroll
    for (int t = 0; t < kTiles; t += kPair) {
      uint32_t w[kPair][kSteps][4];
#pragma unroll
      for (int u = 0; u < kPair && t + u < kTiles; ++u, met.weights.Next()) {
        const int stage = met.weights.stage;
        shared.weights_full[stage].Wait(met.weights.phase);
        const unsigned char* const from = shared.weights[stage].rows;
#pragma unroll
        for (int q = 0; q < kSteps; ++q) {
          LoadTiles(w[u][q], from + ((t + u + 1 < kTiles ? weight_at : last_at) ^ q * 32));
        }
        if (lane == 0) shared.weights_free[stage].Arrive();
      }
#pragma unroll
      for (int q = 0; q < kSteps; ++q) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const uint4& by = x.x[0][q / 2][c];
#pragma unroll
          for (int u = 0; u < kPair && t + u < kTiles; ++u) {
            if (q % 2 == 0) {
              MultiplyAdd<T>(sum[t + u][c], w[u][q], by.x, by.y);
            } else {
              MultiplyAdd<T>(sum[t + u][c], w[u][q], by.z, by.w);
            }
          }
        }
      }
    }
  }
}

template <class T, int kColumns, bool kNorm>
__device__ void MultiplyTiles(const Arguments& a, const Walk<kColumns>& walk,
                              Shared<kColumns>& shared) {
  constexpr int kTilesTogether = Shared<kColumns>::kTilesTogether;
  Met<kColumns> met;
  const int of_tile = OutputsOfTile(a.gated);
  int first = walk.first;
#pragma unroll 1
  for (int group = 0; group < walk.groups; ++group) {
    const int tiles = walk.tiles_of(group);
    const int behind = first + tiles * of_tile;
    const int last_at = WeightAt(a.gated, walk.rest > 0 && behind >= walk.end);
    float sum[kTilesTogether][kColumns][4] = {};
    float squares[kColumns] = {};
    // By the number of tiles, so that nothing branches in between.
    const auto multiply = [&](auto count) {
      MultiplyGroup<T, kColumns, kNorm, count.value>(a, walk.stages, last_at, shared, met, sum,
                                                     squares);
    };
    static_assert(kTilesTogether == 4);
    switch (tiles) {
      case 0:
        multiply(std::integral_constant<int, 0>{});
        break;
      case 1:
        multiply(std::integral_constant<int, 1>{});
        break;
      case 2:
        multiply(std::integral_constant<int, 2>{});
        break;
      case 3:
        multiply(std::integral_constant<int, 3>{});
        break;
      default:
        multiply(std::integral_constant<int, 4>{});
    }
    FinishTiles<T, kColumns, kTilesTogether, kNorm, Shared<kColumns>::kTilesAtOnce>(
        a, shared.sums, first, min(behind, walk.end), sum, squares, kMultiplyWarps,
        [] { SyncThreads(/*barrier=*/1, kMultiplyWarps * kWarp); });
    first = behind;
  }
}

// Grid: as many blocks as there are pieces or multiprocessors, but for whole clusters.
template <class T, int kColumns, bool kNorm>
__global__ void __launch_bounds__(kThreads, 1)
    StreamedKernel(const Arguments a, const Shares shares, const __grid_constant__ Maps maps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(kSwizzleAlignment) unsigned char memory[];
  constexpr int kCluster = Shared<kColumns>::kCluster;
  auto& shared = *reinterpret_cast<Shared<kColumns>*>(memory);
  LetSuccessorBegin();
  const Walk<kColumns> walk(a, shares);
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < shared.kWeightStages; ++i) {
      shared.weights_full[i].Init(1);
      shared.weights_free[i].Init(kMultiplyWarps);
    }
    for (int i = 0; i < shared.kActivationStages; ++i) {
      shared.activations_full[i].Init(1);
      shared.activations_free[i].Init(kMultiplyWarps * kCluster);
    }
    if (kCluster > 1) PublishBarriers();
    PublishToCopies();
  }
  __syncthreads();
  if (kCluster > 1) ArriveAtCluster();
  const bool first_lane = threadIdx.x % kWarp == 0;
  if (warp == kWeightWarp && first_lane) FillWeights(a, maps, walk, shared);
  __syncwarp();
  if (kCluster > 1) WaitForCluster();  // until the others' barriers are there
  WaitForPredecessor();
  if (warp == kActivationWarp && first_lane) {
    FillActivations<kColumns, kNorm>(a, maps, walk, shared);
  }
  if (warp < kMultiplyWarps) MultiplyTiles<T, kColumns, kNorm>(a, walk, shared);
#endif
}

// Of boxes of `rows` rows. Outputs past the last, and inputs, come as zeros. A gate and its up
// projection lie half of the weight apart.
CUtensorMap WeightMap(const Arguments& a, int rows) {
  const uint64_t row = a.padded * 2;
  const auto halves = a.gated ? 2u : 1u;
  const auto outputs = static_cast<uint64_t>(OutputsOf(a));
  const auto blocks = static_cast<uint64_t>(a.padded / kBlock);
  return MakeTensorMap(a.weight, {{kBlock, 2, kBlock},
                                  {outputs, row, rows / halves},
                                  {halves, outputs * row, halves},
                                  {blocks, kRowBytes, kMultiplyWarps}});
}

template <int kColumns>
CUtensorMap ActivationMap(const Arguments& a) {
  constexpr int kBlocks = kMultiplyWarps / Sizes<kColumns>::kCluster;
  return MakeTensorMap(
      a.in, {{kBlock, 2, kBlock},
             {uint64_t(a.rows), uint64_t(a.in_stride) * 2, uint32_t(RowsOfStage<kColumns>(a))},
             {uint64_t(a.cols / kBlock), kRowBytes, kBlocks}});
}

template <class T, int kColumns, bool kNorm>
void LaunchColumns(Stream& s, const Arguments& a) {
  constexpr int kCluster = Sizes<kColumns>::kCluster;
  const auto blocks = std::min<int64_t>(PiecesOf(a), Multiprocessors(s));
  CHECK_LE(OutputsOf(a), std::numeric_limits<int>::max() - kTileRows) << "outputs";
  const auto clusters = static_cast<unsigned>(std::max<int64_t>(blocks / kCluster, 1));
  const Maps maps = {.weight = WeightMap(a, kTileRows),
                     .piece = WeightMap(a, kPieceRows),
                     .activations = ActivationMap<kColumns>(a)};
  LaunchDependentClusters(s, kCluster, StreamedKernel<T, kColumns, kNorm>,
                          dim3(clusters * kCluster), kThreads, sizeof(Shared<kColumns>), a,
                          SharesOf<kColumns>(a, clusters), maps);
}

template <class T, bool kNorm>
void LaunchStreamed(Stream& s, const Arguments& a) {
  if (a.rows <= 8) return LaunchColumns<T, 1, kNorm>(s, a);
  if (a.rows <= 16) return LaunchColumns<T, 2, kNorm>(s, a);
  static_assert(kSkinnyRows <= 32);
  LaunchColumns<T, 4, kNorm>(s, a);
}

}  // namespace
}  // namespace skinny

bool TakesStreamed(Stream& s, const Product& p) {
  // Of a smaller weight a multiprocessor has too little to stream: SmolLM2-135M was slower, with 27
  // KiB at most, Llama-1B faster, with 62 KiB at least (H100, whole steps).
  constexpr size_t kLeastBytes = 48 << 10;
  return IsFloat(p.w.dtype) && skinny::TakesRows(p, kSkinnyRows) &&
         p.w.cols % skinny::kBlock == 0 && HasClusters(s) &&
         SharedOfBlock(s) >= skinny::kSharedOfBlock &&
         BytesOf(p.w.dtype, p.w.rows * PaddedCols(p.w.cols)) >= kLeastBytes * Multiprocessors(s);
}

void StreamedProduct(Stream& s, const Product& p) {
  CHECK(TakesStreamed(s, p));
  if (p.in.rows() == 0) return;
  const Arguments a = ArgumentsOf(p);
  const auto launch = [&](auto type) {
    using T = decltype(type);
    if (a.norm_weight != nullptr) {
      skinny::LaunchStreamed<T, true>(s, a);
    } else {
      skinny::LaunchStreamed<T, false>(s, a);
    }
  };
  if (p.w.dtype == DType::kBF16) {
    launch(__nv_bfloat16{});
  } else {
    launch(__half{});
  }
}

}  // namespace keyline::cuda
