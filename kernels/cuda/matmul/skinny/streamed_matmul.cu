// Products of up to 32 rows on tensor cores, in bf16 or f16, on GPUs of compute capability 9.0 and
// later: the weights stream through every multiprocessor without a pause. Limit: bytes of the
// weight over read bandwidth.
//
// One block a multiprocessor has consecutive tiles of the weight (tiles.cuh), a few at a time,
// which share the activations that they are multiplied with. Its weights run through a ring of most
// of the shared memory: what is on its way bridges the ends of tiles, and the start of this kernel,
// since weights depend on nobody and begin to come before the predecessor has ended. Eight warps
// multiply: of each stage of the ring, kInputs inputs of a tile, a warp has 64. Two warps fill the
// ring, in turn, because one alone issues copies more slowly than the memory answers. Others fill
// another ring with activations.
//
// What many rows cost is the activations, which come from the L2 cache again for every group of
// tiles: for each byte of weights rows / (16 * tiles) of theirs. So the blocks of a cluster, whose
// tiles differ, share them: each copies some of the rows, to all.
//
// One kernel for several products, whose blocks wait for each other in between and whose ring never
// pauses, was built too: on an H200 it was no faster than this. On an H100 two more ways to have
// the memory at work between products made a decode step of Llama-8B slower (0.90 of its limit):
// room for the next product's block beside this one's, by rings of four and five stages (0.87), and
// asking the L2 cache for the next weight's first rows as soon as this one's last have come (0.88).
#include <algorithm>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/matmul/skinny/tiles.cuh"

namespace keyline::cuda {
namespace skinny {
namespace {

constexpr int kMultiplyWarps = 8;
constexpr int kWeightWarps = 2;
constexpr int kFirstActivationWarp = kMultiplyWarps + kWeightWarps;

constexpr int kInputs = kMultiplyWarps * kBlock;  // of a stage
// From row to row of a stage: 64 bytes more than a multiple of 128, so that the eight lanes that
// read together, of two rows, meet different banks.
constexpr int kPitch = kInputs * 2 + 64;

// What a block has, by the tiles of 8 rows of activations. More weights on their way than the
// memory's latency asks for were no faster (measured on an H200: 6 stages 0.98 of 9 at 8 rows, 10
// the same). A block takes a group's sums apart where all at once would not leave room for them.
// kCluster: blocks of a cluster.
template <int kColumns>
struct Sizes;
template <>
struct Sizes<1> {
  static constexpr int kTilesTogether = 2, kTilesAtOnce = 2;
  static constexpr int kWeightStages = 9, kActivationStages = 4;
  static constexpr int kActivationWarps = 1, kCluster = 1;
};
template <>
struct Sizes<2> {
  static constexpr int kTilesTogether = 4, kTilesAtOnce = 1;
  static constexpr int kWeightStages = 9, kActivationStages = 3;
  static constexpr int kActivationWarps = 2, kCluster = 2;
};
template <>
struct Sizes<4> {
  static constexpr int kTilesTogether = 4, kTilesAtOnce = 1;
  static constexpr int kWeightStages = 8, kActivationStages = 2;
  static constexpr int kActivationWarps = 2, kCluster = 2;
};

template <int kColumns>
constexpr int kThreads = (kFirstActivationWarp + Sizes<kColumns>::kActivationWarps) * kWarp;

struct WeightStage {
  unsigned char rows[kTileRows * kPitch];
};
template <int kRows>
struct ActivationStage {
  unsigned char rows[kRows * kPitch];
  float scale[kInputs];  // weights of the norm
};

template <int kColumns>
struct Shared : Sizes<kColumns> {
  using Sizes<kColumns>::kWeightStages, Sizes<kColumns>::kActivationStages;
  static constexpr int kRows = kColumns * 8;  // of activations
  static_assert(Sizes<kColumns>::kTilesTogether % Sizes<kColumns>::kTilesAtOnce == 0);

  WeightStage weights[kWeightStages];
  ActivationStage<kRows> activations[kActivationStages];
  alignas(
      16) unsigned char sums[SumsBytes(kMultiplyWarps, Sizes<kColumns>::kTilesAtOnce, kColumns)];
  Barrier weights_full[kWeightStages], weights_free[kWeightStages];
  Barrier activations_full[kActivationStages], activations_free[kActivationStages];
};
constexpr size_t kSharedOfBlock = 227 << 10;  // at most
static_assert(sizeof(Shared<1>) <= kSharedOfBlock && sizeof(Shared<2>) <= kSharedOfBlock &&
              sizeof(Shared<4>) <= kSharedOfBlock);

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

// By one of the warps that fill the ring, number `mine`.
template <int kColumns>
__device__ void FillWeights(const Arguments& a, const Walk<kColumns>& walk,
                            Shared<kColumns>& shared, int mine) {
  constexpr int kWeightStages = Shared<kColumns>::kWeightStages;
  const int lane = threadIdx.x % kWarp;
  const int64_t half = a.gated ? a.outputs / 2 : 0;
  int number = 0;
  int64_t first = walk.first;
  for (int group = 0; group < walk.groups; first += walk.tiles_of(group), ++group) {
    const int tiles = walk.tiles_of(group);
    for (int i = 0; i < walk.stages; ++i) {
      const int64_t at = int64_t{i} * kInputs;
      const auto bytes = static_cast<uint32_t>(min(a.padded - at, int64_t{kInputs}) * 2);
      for (int t = 0; t < tiles; ++t, ++number) {
        if (number % kWeightWarps != mine) continue;
        const int stage = number % kWeightStages;
        if (number >= kWeightStages) shared.weights_free[stage].Wait(number / kWeightStages - 1);
        if (lane == 0) shared.weights_full[stage].ArriveExpecting(kTileRows * bytes);
        __syncwarp();
        if (lane >= kTileRows) continue;
        const int64_t tile = first + t;
        // Where there are fewer rows, row 0 again, and nothing comes of it.
        int64_t row =
            a.gated ? tile * 8 + lane % 8 + (lane < 8 ? 0 : half) : tile * kTileRows + lane;
        if (row >= a.outputs || (a.gated && tile * 8 + lane % 8 >= half)) row = 0;
        CopyBulk(shared.weights[stage].rows + lane * kPitch,
                 static_cast<const unsigned char*>(a.weight) + (row * a.padded + at) * 2, bytes,
                 shared.weights_full[stage], kReadOnce);
      }
    }
  }
}

// By one of the warps that fill the ring of activations, number `mine`. Rows go to the blocks of
// the cluster in turn, and of each to its warps.
template <int kColumns, bool kNorm>
__device__ void FillActivations(const Arguments& a, const Walk<kColumns>& walk,
                                Shared<kColumns>& shared, int mine) {
  constexpr int kActivationStages = Shared<kColumns>::kActivationStages;
  constexpr int kCluster = Shared<kColumns>::kCluster;
  constexpr int kScaleLane = Shared<kColumns>::kRows % kWarp;
  const int lane = threadIdx.x % kWarp;
  const bool copies_row = lane < a.rows && lane % kCluster == blockIdx.x % kCluster &&
                          lane / kCluster % Shared<kColumns>::kActivationWarps == mine;
  const bool copies_scale =
      kNorm && lane == kScaleLane && blockIdx.x % kCluster == kCluster - 1 && mine == 0;
  const auto copy = [](void* to, const void* from, uint32_t bytes, Barrier& full) {
    if constexpr (kCluster == 1) {
      CopyBulk(to, from, bytes, full);
    } else {
      CopyBulkToBlocks(to, from, bytes, full, (1 << kCluster) - 1);
    }
  };
  int number = 0;
  for (int group = 0; group < walk.groups; ++group) {
    for (int i = 0; i < walk.stages; ++i, ++number) {
      const int64_t at = int64_t{i} * kInputs;
      const auto inputs = static_cast<uint32_t>(min(a.cols - at, int64_t{kInputs}));
      const int stage = number % kActivationStages;
      if (number >= kActivationStages)
        shared.activations_free[stage].Wait(number / kActivationStages - 1);
      auto& to = shared.activations[stage];
      Barrier& full = shared.activations_full[stage];
      if (mine == 0 && lane == 0) full.ArriveExpecting(inputs * (a.rows * 2 + (kNorm ? 4 : 0)));
      __syncwarp();
      if (copies_row) {
        copy(to.rows + lane * kPitch,
             static_cast<const unsigned char*>(a.in) + (lane * a.in_stride + at) * 2, inputs * 2,
             full);
      }
      if (copies_scale) copy(to.scale, a.norm_weight + at, inputs * 4, full);
    }
  }
  if constexpr (kCluster > 1) {
    // No block leaves before the others have what it copies to them, and have arrived at its
    // barriers for the last time.
    for (int i = max(number - kActivationStages, 0); i < number; ++i) {
      shared.activations_free[i % kActivationStages].Wait(i / kActivationStages);
    }
  }
}

template <class T, int kColumns, bool kNorm>
__device__ void MultiplyTiles(const Arguments& a, const Walk<kColumns>& walk,
                              Shared<kColumns>& shared) {
  constexpr int kTilesTogether = Shared<kColumns>::kTilesTogether;
  constexpr int kCluster = Shared<kColumns>::kCluster;
  constexpr int kWeightStages = Shared<kColumns>::kWeightStages;
  constexpr int kActivationStages = Shared<kColumns>::kActivationStages;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  int activations = 0;  // stages that have been met
  int weights = 0;
  int64_t tile = walk.first;
  for (int group = 0; group < walk.groups; tile += walk.tiles_of(group), ++group) {
    const int tiles = walk.tiles_of(group);
    float sum[kTilesTogether][kColumns][4] = {};
    float squares[kColumns] = {};  // of column lane / 4, as far as this lane meets it
    for (int i = 0; i < walk.stages; ++i) {
      Activations<T, kColumns, kNorm> x;
      {
        const int stage = activations % kActivationStages;
        shared.activations_full[stage].Wait(activations / kActivationStages);
        ++activations;
        const auto& from = shared.activations[stage];
#pragma unroll
        for (int h = 0; h < kStepsOfBlock; ++h) {
          const int in_stage = warp * kBlock + h * kStep + lane % 4 * 8;
          const bool inside = i * kInputs + in_stage < a.cols;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const int row = c * 8 + lane / 4;
            x.x[0][h][c] = make_uint4(0, 0, 0, 0);
            if (inside && row < a.rows) {
              x.x[0][h][c] =
                  *reinterpret_cast<const uint4*>(from.rows + row * kPitch + in_stage * 2);
            }
          }
          if (kNorm) {
            x.scale[0][h][0] = x.scale[0][h][1] = make_float4(0, 0, 0, 0);
            if (inside) {
              x.scale[0][h][0] = *reinterpret_cast<const float4*>(from.scale + in_stage);
              x.scale[0][h][1] = *reinterpret_cast<const float4*>(from.scale + in_stage + 4);
            }
          }
        }
        __syncwarp();
        if constexpr (kCluster == 1) {
          if (lane == 0) shared.activations_free[stage].Arrive();
        } else {  // all of the cluster write there
          if (lane < kCluster) shared.activations_free[stage].ArriveAt(lane);
        }
      }
      if (kNorm) {
#pragma unroll
        for (int h = 0; h < kStepsOfBlock; ++h) x.Scale(0, h, squares);
      }
#pragma unroll
      for (int t = 0; t < kTilesTogether; ++t) {
        if (t >= tiles) break;
        const int stage = weights % kWeightStages;
        shared.weights_full[stage].Wait(weights / kWeightStages);
        ++weights;
        if (i * kInputs + warp * kBlock < a.padded) {
          const unsigned char* const rows =
              shared.weights[stage].rows + lane / 4 * kPitch + (warp * kBlock + lane % 4 * 8) * 2;
#pragma unroll
          for (int h = 0; h < kStepsOfBlock; ++h) {
            const uint4 upper = *reinterpret_cast<const uint4*>(rows + h * kStep * 2);
            const uint4 lower = *reinterpret_cast<const uint4*>(rows + 8 * kPitch + h * kStep * 2);
            const uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
            const uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
              const uint4& by = x.x[0][h][c];
              MultiplyAdd<T>(sum[t][c], low, by.x, by.y);
              MultiplyAdd<T>(sum[t][c], high, by.z, by.w);
            }
          }
        }
        __syncwarp();
        if (lane == 0) shared.weights_free[stage].Arrive();
      }
    }
    FinishTiles<T, kColumns, kTilesTogether, kNorm, Shared<kColumns>::kTilesAtOnce>(
        a, shared.sums, tile, tiles, sum, squares, kMultiplyWarps,
        [] { SyncThreads(/*barrier=*/1, kMultiplyWarps * kWarp); });
  }
}

// Grid: as many blocks as there are tiles or multiprocessors, but for whole clusters.
template <class T, int kColumns, bool kNorm>
__global__ void __launch_bounds__(kThreads<kColumns>, 1) StreamedKernel(const Arguments a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char memory[];
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
  const bool fills_weights = warp >= kMultiplyWarps && warp < kFirstActivationWarp;
  if (fills_weights) FillWeights(a, walk, shared, warp - kMultiplyWarps);
  if (kCluster > 1) WaitForCluster();  // until the others' barriers are there
  WaitForPredecessor();
  if (warp >= kFirstActivationWarp) {
    FillActivations<kColumns, kNorm>(a, walk, shared, warp - kFirstActivationWarp);
  }
  if (warp < kMultiplyWarps) MultiplyTiles<T, kColumns, kNorm>(a, walk, shared);
#endif
}

template <class T, int kColumns, bool kNorm>
void LaunchColumns(Stream& s, const Arguments& a) {
  constexpr int kCluster = Sizes<kColumns>::kCluster;
  const auto blocks = std::min<int64_t>(TilesOf(a), Multiprocessors(s));
  CHECK_LT(TilesOf(a) * (blocks + 1), int64_t{1} << 32) << "outputs";
  const auto clusters = static_cast<unsigned>(std::max<int64_t>(blocks / kCluster, 1));
  LaunchDependentClusters(s, kCluster, StreamedKernel<T, kColumns, kNorm>,
                          dim3(clusters * kCluster), kThreads<kColumns>, sizeof(Shared<kColumns>),
                          a);
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
  return IsFloat(p.w.dtype) && skinny::TakesRows(p, kSkinnyRows) && HasClusters(s) &&
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
