// Products of up to 32 rows on tensor cores, in bf16 or f16, on GPUs of compute capability 9.0 and
// later: the weights stream through every multiprocessor without a pause. Limit: bytes of the
// weight over read bandwidth.
//
// One block a multiprocessor has consecutive tiles of the weight (tiles.cuh), a few at a time,
// which share the activations that they are multiplied with. Its weights run through a ring of most
// of the shared memory: what is on its way bridges the ends of tiles, and the start of this kernel,
// since weights depend on nobody and begin to come before the predecessor has ended. Eight warps
// multiply: of each stage of the ring, kInputs inputs of a tile, a warp has 64. One thread fills the
// ring, by copies of a whole stage each; another fills a second ring with activations.
//
// Copies of single rows, 16 a stage, came to 4.25 TB/s of an H200's 4.59 where whole stages come to
// 4.48: a multiprocessor begins a copy every 40 ns or so, whatever its size.
//
// What many rows cost is the activations, which come from the L2 cache again for every group of
// tiles: for each byte of weights rows / (16 * tiles) of theirs. So the blocks of a cluster, whose
// tiles differ, share them: each copies some of the inputs, to all.
//
// One kernel for several products, whose blocks wait for each other in between and whose ring never
// pauses, was built twice: on an H200 four products took 3 % longer than in kernels of their own,
// although their weights came to be there before the activations. Neither was room for the next
// product's block beside this one's, by rings of five stages, any faster; nor, on an H100, asking
// the L2 cache for the next weight's first rows as soon as this one's last have come (0.88 of a
// step's limit instead of 0.90).
#include <algorithm>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/matmul/skinny/tensor_map.h"
#include "kernels/cuda/matmul/skinny/tiles.cuh"

namespace keyline::cuda {
namespace skinny {
namespace {

constexpr int kMultiplyWarps = 8;
constexpr int kWeightWarp = kMultiplyWarps;  // its first lane fills the ring
constexpr int kActivationWarp = kWeightWarp + 1;
constexpr int kThreads = (kActivationWarp + 1) * kWarp;

constexpr int kInputs = kMultiplyWarps * kBlock;  // of a stage
// Stages of weights on their way at most. Four have the memory busy, on an H200 too; with more, what
// activations wait behind is longer (6: as fast, all of eleven: 2 % slower).
constexpr int kInFlight = 4;

// What a block has, by the tiles of 8 rows of activations. It multiplies kPair tiles at a time, for
// fewer barriers and more products that do not wait for each other, where registers last; and takes
// a group's sums apart where all at once would not leave room for them. kCluster: blocks of a
// cluster.
template <int kColumns>
struct Sizes;
template <>
struct Sizes<1> {
  static constexpr int kTilesTogether = 4, kTilesAtOnce = 2, kPair = 2;
  static constexpr int kWeightStages = 11, kActivationStages = 3;
  static constexpr int kCluster = 1;
};
template <>
struct Sizes<2> {
  static constexpr int kTilesTogether = 4, kTilesAtOnce = 1, kPair = 1;
  static constexpr int kWeightStages = 10, kActivationStages = 3;
  static constexpr int kCluster = 2;
};
template <>
struct Sizes<4> {
  static constexpr int kTilesTogether = 4, kTilesAtOnce = 1, kPair = 1;
  static constexpr int kWeightStages = 8, kActivationStages = 2;
  static constexpr int kCluster = 2;
};

// A stage is of kMultiplyWarps blocks of kBlock inputs, 128 bytes of each row. Byte of a chunk of
// 16 bytes, as the copy puts it (CopyBox): in rows of 128 bytes, counted through all blocks.
constexpr int kRowBytes = kBlock * 2;
__device__ inline int Swizzled(int row, int chunk) {
  return row * kRowBytes + (chunk ^ row % 8) * 16;
}

// The chunk of its warp's block that a lane takes in step h: such that the eight lanes that read
// together, of two rows, meet different banks.
__device__ inline int ChunkOf(int h) {
  static_assert(kStepsOfBlock == 2);
  return static_cast<int>(threadIdx.x) % 4 * kStepsOfBlock + h;
}

struct WeightStage {
  unsigned char rows[kMultiplyWarps * kTileRows * kRowBytes];
};
template <int kRows>
struct ActivationStage {
  unsigned char rows[kMultiplyWarps * kRows * kRowBytes];
  float scale[kInputs];  // weights of the norm
};

template <int kColumns>
struct Shared : Sizes<kColumns> {
  using Sizes<kColumns>::kTilesTogether, Sizes<kColumns>::kTilesAtOnce, Sizes<kColumns>::kPair;
  using Sizes<kColumns>::kWeightStages, Sizes<kColumns>::kActivationStages;
  static constexpr int kRows = kColumns * 8;  // of activations
  static_assert(kTilesTogether % kTilesAtOnce == 0 && kTilesTogether % kPair == 0);
  static_assert(kInFlight <= kWeightStages);

  WeightStage weights[kWeightStages];
  ActivationStage<kRows> activations[kActivationStages];
  alignas(16) unsigned char sums[SumsBytes(kMultiplyWarps, kTilesAtOnce, kColumns)];
  Barrier weights_full[kWeightStages], weights_free[kWeightStages];
  Barrier activations_full[kActivationStages], activations_free[kActivationStages];
};
constexpr size_t kSharedOfBlock = 227 << 10;  // at most
static_assert(sizeof(Shared<1>) <= kSharedOfBlock && sizeof(Shared<2>) <= kSharedOfBlock &&
              sizeof(Shared<4>) <= kSharedOfBlock);
static_assert(sizeof(WeightStage) % kSwizzleAlignment == 0 &&
              sizeof(ActivationStage<8>) % kSwizzleAlignment == 0);

// The block's tiles, in the order that all its warps go by: groups of kTilesTogether at most, as
// even as they come, and of each group the stages. The blocks of a cluster have as many groups
// each, because they share the activations; one that has fewer tiles has a group of none at times.
template <int kColumns>
struct Walk {
  int64_t first;  // tile
  int groups;
  int stages;  // of a tile

  __device__ explicit Walk(const Arguments& a) {
    constexpr int kCluster = Sizes<kColumns>::kCluster;
    constexpr int kTilesTogether = Sizes<kColumns>::kTilesTogether;
    const auto tiles = static_cast<uint32_t>(TilesOf(a));  // times blocks in 32 bits
    const uint32_t cluster = blockIdx.x / kCluster;
    const uint32_t clusters = gridDim.x / kCluster;
    const int block = blockIdx.x % kCluster;
    const uint32_t first_of_all = tiles * cluster / clusters;
    const auto all = static_cast<int>(tiles * (cluster + 1) / clusters - first_of_all);
    const int before = all * block / kCluster;
    const int mine = all * (block + 1) / kCluster - before;
    first = int64_t{first_of_all} + before;
    groups = (all + kCluster * kTilesTogether - 1) / (kCluster * kTilesTogether);
    fewer_ = mine / groups;
    longer_ = mine % groups;
    stages = static_cast<int>((a.padded + kInputs - 1) / kInputs);
  }
  __device__ int tiles_of(int group) const { return fewer_ + (group < longer_ ? 1 : 0); }

 private:
  int fewer_;   // tiles of most groups
  int longer_;  // first groups, which have one more
};

// Rows of activations that a stage has: whole tiles of them, but for one, where rows that there are
// not would be much of the copy.
template <int kColumns>
__host__ __device__ int RowsOfStage(const Arguments& a) {
  return kColumns == 1 ? a.rows : kColumns * 8;
}

// How the copies see the weight and the activations.
struct Maps {
  CUtensorMap weight;       // boxes of a stage, at (0, row, 0, block of inputs)
  CUtensorMap activations;  // of a stage, or what a block of the cluster copies of it, at (0, 0,
                            // block of inputs)
};

// By one thread.
template <int kColumns>
__device__ void FillWeights(const Arguments& a, const Maps& maps, const Walk<kColumns>& walk,
                            Shared<kColumns>& shared) {
  constexpr int kStages = Shared<kColumns>::kWeightStages;
  const int rows = a.gated ? kTileRows / 2 : kTileRows;  // of a tile, of a half of the weight
  int number = 0;
  auto first = static_cast<int>(walk.first);
  for (int group = 0; group < walk.groups; first += walk.tiles_of(group), ++group) {
    const int tiles = walk.tiles_of(group);
    for (int i = 0; i < walk.stages; ++i) {
      for (int t = 0; t < tiles; ++t, ++number) {
        const int stage = number % kStages;
        if (number >= kStages) shared.weights_free[stage].Wait(number / kStages - 1);
        if (number >= kInFlight) {
          const int before = number - kInFlight;
          shared.weights_full[before % kStages].Wait(before / kStages);
        }
        Barrier& full = shared.weights_full[stage];
        full.ArriveExpecting(sizeof(WeightStage));
        CopyBox(shared.weights[stage].rows, maps.weight,
                {0, (first + t) * rows, 0, i * kMultiplyWarps}, full, kReadOnce);
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
  int number = 0;
  for (int group = 0; group < walk.groups; ++group) {
    for (int i = 0; i < walk.stages; ++i, ++number) {
      const int at = i * kInputs;
      const auto inputs = static_cast<uint32_t>(min(static_cast<int>(a.cols) - at, kInputs));
      const int stage = number % kStages;
      if (number >= kStages) shared.activations_free[stage].Wait(number / kStages - 1);
      auto& to = shared.activations[stage];
      Barrier& full = shared.activations_full[stage];
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
    for (int i = max(number - kStages, 0); i < number; ++i) {
      shared.activations_free[i % kStages].Wait(i / kStages);
    }
  }
}

template <class T, int kColumns, bool kNorm>
__device__ void MultiplyTiles(const Arguments& a, const Walk<kColumns>& walk,
                              Shared<kColumns>& shared) {
  constexpr int kTilesTogether = Shared<kColumns>::kTilesTogether;
  constexpr int kPair = Shared<kColumns>::kPair;
  constexpr int kCluster = Shared<kColumns>::kCluster;
  constexpr int kWeightStages = Shared<kColumns>::kWeightStages;
  constexpr int kActivationStages = Shared<kColumns>::kActivationStages;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int rows = RowsOfStage<kColumns>(a);
  int activations = 0;  // stages that have been met
  int weights = 0;
  int64_t tile = walk.first;
  for (int group = 0; group < walk.groups; tile += walk.tiles_of(group), ++group) {
    const int tiles = walk.tiles_of(group);
    float sum[kTilesTogether][kColumns][4] = {};
    float squares[kColumns] = {};  // of column lane / 4, as far as this lane meets it
    for (int i = 0; i < walk.stages; ++i) {
      const bool inside = i * kInputs + warp * kBlock < a.cols;
      Activations<T, kColumns, kNorm> x;
      {
        const int stage = activations % kActivationStages;
        shared.activations_full[stage].Wait(activations / kActivationStages);
        ++activations;
        const auto& from = shared.activations[stage];
#pragma unroll
        for (int h = 0; h < kStepsOfBlock; ++h) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            // Where there are fewer rows, the last again, and nothing comes of it.
            const int row = min(c * 8 + lane / 4, rows - 1);
            x.x[0][h][c] = *reinterpret_cast<const uint4*>(
                from.rows + Swizzled(warp * rows + row, ChunkOf(h)));
          }
          if (kNorm) {
            const float* const scale = from.scale + warp * kBlock + ChunkOf(h) * 8;
            x.scale[0][h][0] = *reinterpret_cast<const float4*>(scale);
            x.scale[0][h][1] = *reinterpret_cast<const float4*>(scale + 4);
          }
        }
        __syncwarp();
        if constexpr (kCluster == 1) {
          if (lane == 0) shared.activations_free[stage].Arrive();
        } else {  // all of the cluster write there
          if (lane < kCluster) shared.activations_free[stage].ArriveAt(lane);
        }
      }
      if (kNorm && inside) {
#pragma unroll
        for (int h = 0; h < kStepsOfBlock; ++h) x.Scale(0, h, squares);
      }
#pragma unroll
      for (int t = 0; t < kTilesTogether; t += kPair) {
        if (t >= tiles) break;
        uint4 w[kPair][kStepsOfBlock][2];  // upper and lower rows
#pragma unroll
        for (int u = 0; u < kPair; ++u) {
          if (t + u >= tiles) break;
          const int stage = weights % kWeightStages;
          shared.weights_full[stage].Wait(weights / kWeightStages);
          ++weights;
          const unsigned char* const from = shared.weights[stage].rows;
          const int row = warp * kTileRows + lane / 4;
#pragma unroll
          for (int h = 0; h < kStepsOfBlock; ++h) {
            w[u][h][0] = *reinterpret_cast<const uint4*>(from + Swizzled(row, ChunkOf(h)));
            w[u][h][1] = *reinterpret_cast<const uint4*>(from + Swizzled(row + 8, ChunkOf(h)));
          }
          __syncwarp();
          if (lane == 0) shared.weights_free[stage].Arrive();
        }
        if (!inside) continue;
#pragma unroll
        for (int h = 0; h < kStepsOfBlock; ++h) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
              const uint4& by = x.x[0][h][c];
#pragma unroll
              for (int u = 0; u < kPair; ++u) {
                if (t + u >= tiles) break;
                const uint4& upper = w[u][h][0];
                const uint4& lower = w[u][h][1];
                if (half == 0) {
                  const uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
                  MultiplyAdd<T>(sum[t + u][c], low, by.x, by.y);
                } else {
                  const uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
                  MultiplyAdd<T>(sum[t + u][c], high, by.z, by.w);
                }
              }
            }
          }
        }
      }
    }
    FinishTiles<T, kColumns, kTilesTogether, kNorm, Shared<kColumns>::kTilesAtOnce>(
        a, shared.sums, tile, tiles, sum, squares, kMultiplyWarps,
        [] { SyncThreads(/*barrier=*/1, kMultiplyWarps * kWarp); });
  }
}

// Grid: as many blocks as there are tiles or multiprocessors, but for whole clusters.
template <class T, int kColumns, bool kNorm>
__global__ void __launch_bounds__(kThreads, 1)
    StreamedKernel(const Arguments a, const __grid_constant__ Maps maps) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(kSwizzleAlignment) unsigned char memory[];
  constexpr int kCluster = Shared<kColumns>::kCluster;
  auto& shared = *reinterpret_cast<Shared<kColumns>*>(memory);
  LetSuccessorBegin();
  const Walk<kColumns> walk(a);
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

// Outputs past the last, and inputs, come as zeros. A gate and its up projection lie half of the
// weight apart.
CUtensorMap WeightMap(const Arguments& a) {
  const uint64_t row = a.padded * 2;
  const auto halves = a.gated ? 2 : 1;
  const auto outputs = static_cast<uint64_t>(a.outputs / halves);
  const uint64_t blocks = a.padded / kBlock;
  return MakeTensorMap(a.weight, {{kBlock, 2, kBlock},
                                  {outputs, row, uint32_t(kTileRows / halves)},
                                  {uint64_t(halves), outputs * row, uint32_t(halves)},
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
  const auto blocks = std::min<int64_t>(TilesOf(a), Multiprocessors(s));
  CHECK_LT(TilesOf(a) * (blocks + 1), int64_t{1} << 32) << "outputs";
  const auto clusters = static_cast<unsigned>(std::max<int64_t>(blocks / kCluster, 1));
  const Maps maps = {.weight = WeightMap(a), .activations = ActivationMap<kColumns>(a)};
  LaunchDependentClusters(s, kCluster, StreamedKernel<T, kColumns, kNorm>,
                          dim3(clusters * kCluster), kThreads, sizeof(Shared<kColumns>), a, maps);
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
