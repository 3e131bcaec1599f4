// Products of up to 8 rows on tensor cores, in bf16 or f16, on GPUs of compute capability 9.0 and
// later: the weights stream through every multiprocessor without a pause. Limit: bytes of the
// weight over read bandwidth.
//
// One block a multiprocessor has consecutive tiles of the weight (tiles.cuh), two at a time, which
// share the activations that they are multiplied with. Its weights run through a ring of most of
// the shared memory: what is on its way bridges the ends of tiles, and the start of this kernel,
// since weights depend on nobody and begin to come before the predecessor has ended. Eight warps
// multiply: of each stage of the ring, kInputs inputs of a tile, a warp has 64. Two warps fill the
// ring, in turn, because one alone issues copies more slowly than the memory answers. A last one
// fills another ring with activations.
//
// One kernel for several products, whose blocks wait for each other in between and whose ring never
// pauses, was built too: on an H200 it was no faster than this.
#include <algorithm>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/matmul/skinny/tiles.cuh"

namespace keyline::cuda {
namespace skinny {
namespace {

constexpr int kRows = 8;  // of activations
constexpr int kMultiplyWarps = 8;
constexpr int kWeightWarps = 2;
constexpr int kActivationWarp = kMultiplyWarps + kWeightWarps;
constexpr int kThreads = (kActivationWarp + 1) * kWarp;
constexpr int kTilesTogether = 2;
constexpr int kMultiplySync = 1;  // named barrier of the warps that multiply

constexpr int kInputs = kMultiplyWarps * kBlock;  // of a stage
// From row to row of a stage: 64 bytes more than a multiple of 128, so that the eight lanes that
// read together, of two rows, meet different banks.
constexpr int kPitch = kInputs * 2 + 64;

struct WeightStage {
  unsigned char rows[kTileRows * kPitch];
};
struct ActivationStage {
  unsigned char rows[kRows * kPitch];
  float scale[kInputs];  // weights of the norm
};

// More weights on their way than the memory's latency asks for were no faster (measured on an H200:
// 6 stages 0.98 of this at 8 rows, 10 the same).
constexpr int kWeightStages = 9;
constexpr int kActivationStages = 4;

struct Shared {
  WeightStage weights[kWeightStages];
  ActivationStage activations[kActivationStages];
  alignas(16) unsigned char sums[SumsBytes(kMultiplyWarps, kTilesTogether, 1)];
  Barrier weights_full[kWeightStages], weights_free[kWeightStages];
  Barrier activations_full[kActivationStages], activations_free[kActivationStages];
};

#if __CUDA_ARCH__ >= 900

// The block's tiles, in the order that all its warps go by: groups of kTilesTogether, and of each
// group the stages.
struct Walk {
  int64_t first, end;  // tiles
  int stages;          // of a tile

  __device__ explicit Walk(const Arguments& a) {
    const int64_t tiles = TilesOf(a);
    first = tiles * blockIdx.x / gridDim.x;
    end = tiles * (blockIdx.x + 1) / gridDim.x;
    stages = static_cast<int>((a.padded + kInputs - 1) / kInputs);
  }
  __device__ int tiles_from(int64_t tile) const {
    return static_cast<int>(min(end - tile, int64_t{kTilesTogether}));
  }
};

// By one of the warps that fill the ring, number `mine`.
__device__ inline void FillWeights(const Arguments& a, Shared& shared, int mine) {
  const int lane = threadIdx.x % kWarp;
  const int64_t half = a.gated ? a.outputs / 2 : 0;
  const Walk walk(a);
  int number = 0;
  for (int64_t first = walk.first; first < walk.end; first += kTilesTogether) {
    for (int i = 0; i < walk.stages; ++i) {
      const int64_t at = int64_t{i} * kInputs;
      const auto bytes = static_cast<uint32_t>(min(a.padded - at, int64_t{kInputs}) * 2);
      for (int t = 0; t < walk.tiles_from(first); ++t, ++number) {
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
        CopyBulkOnce(shared.weights[stage].rows + lane * kPitch,
                     static_cast<const unsigned char*>(a.weight) + (row * a.padded + at) * 2, bytes,
                     shared.weights_full[stage]);
      }
    }
  }
}

template <bool kNorm>
__device__ void FillActivations(const Arguments& a, Shared& shared) {
  const int lane = threadIdx.x % kWarp;
  const Walk walk(a);
  int number = 0;
  for (int64_t first = walk.first; first < walk.end; first += kTilesTogether) {
    for (int i = 0; i < walk.stages; ++i, ++number) {
      const int64_t at = int64_t{i} * kInputs;
      const auto inputs = static_cast<uint32_t>(min(a.cols - at, int64_t{kInputs}));
      const int stage = number % kActivationStages;
      if (number >= kActivationStages)
        shared.activations_free[stage].Wait(number / kActivationStages - 1);
      ActivationStage& to = shared.activations[stage];
      Barrier& full = shared.activations_full[stage];
      if (lane == 0) full.ArriveExpecting(inputs * (a.rows * 2 + (kNorm ? 4 : 0)));
      __syncwarp();
      if (lane < a.rows) {
        CopyBulk(to.rows + lane * kPitch,
                 static_cast<const unsigned char*>(a.in) + (lane * a.in_stride + at) * 2,
                 inputs * 2, full);
      } else if (kNorm && lane == kRows) {
        CopyBulk(to.scale, a.norm_weight + at, inputs * 4, full);
      }
    }
  }
}

template <class T, bool kNorm>
__device__ void MultiplyTiles(const Arguments& a, Shared& shared) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const Walk walk(a);
  int activations = 0;  // stages that have been met
  int weights = 0;
  for (int64_t tile = walk.first; tile < walk.end; tile += kTilesTogether) {
    const int tiles = walk.tiles_from(tile);
    float sum[kTilesTogether][1][4] = {};
    float squares = 0;  // of column lane / 4, as far as this lane meets it
    for (int i = 0; i < walk.stages; ++i) {
      Activations<T, 1, kNorm> x;
      {
        const int stage = activations % kActivationStages;
        shared.activations_full[stage].Wait(activations / kActivationStages);
        ++activations;
        const ActivationStage& from = shared.activations[stage];
#pragma unroll
        for (int h = 0; h < kStepsOfBlock; ++h) {
          const int in_stage = warp * kBlock + h * kStep + lane % 4 * 8;
          const bool inside = i * kInputs + in_stage < a.cols;
          x.x[0][h][0] = make_uint4(0, 0, 0, 0);
          if (inside && lane / 4 < a.rows) {
            x.x[0][h][0] =
                *reinterpret_cast<const uint4*>(from.rows + lane / 4 * kPitch + in_stage * 2);
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
        if (lane == 0) shared.activations_free[stage].Arrive();
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
            const uint4& by = x.x[0][h][0];
            MultiplyAdd<T>(sum[t][0], low, by.x, by.y);
            MultiplyAdd<T>(sum[t][0], high, by.z, by.w);
          }
        }
        __syncwarp();
        if (lane == 0) shared.weights_free[stage].Arrive();
      }
    }
    FinishTiles<T, 1, kTilesTogether, kNorm>(
        a, shared.sums, tile, tiles, sum, squares, kMultiplyWarps,
        [] { SyncThreads(kMultiplySync, kMultiplyWarps * kWarp); });
  }
}

#endif

// Grid: as many blocks as there are tiles or multiprocessors.
template <class T, bool kNorm>
__global__ void __launch_bounds__(kThreads) StreamedKernel(const Arguments a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  LetSuccessorBegin();
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWeightStages; ++i) {
      shared.weights_full[i].Init(1);
      shared.weights_free[i].Init(kMultiplyWarps);
    }
    for (int i = 0; i < kActivationStages; ++i) {
      shared.activations_full[i].Init(1);
      shared.activations_free[i].Init(kMultiplyWarps);
    }
    PublishToCopies();
  }
  __syncthreads();
  const bool fills_weights = warp >= kMultiplyWarps && warp < kActivationWarp;
  if (fills_weights) FillWeights(a, shared, warp - kMultiplyWarps);
  WaitForPredecessor();
  if (warp == kActivationWarp) FillActivations<kNorm>(a, shared);
  if (warp < kMultiplyWarps) MultiplyTiles<T, kNorm>(a, shared);
#endif
}

template <class T, bool kNorm>
void LaunchStreamed(Stream& s, const Arguments& a) {
  const auto blocks = std::min<int64_t>(TilesOf(a), Multiprocessors(s));
  LaunchDependent(s, StreamedKernel<T, kNorm>, dim3(static_cast<unsigned>(blocks)), kThreads,
                  sizeof(Shared), a);
}

}  // namespace
}  // namespace skinny

bool TakesStreamed(Stream& s, const Product& p) {
  // Of a smaller weight a multiprocessor has too little to stream: SmolLM2-135M was slower, with 27
  // KiB at most, Llama-1B faster, with 62 KiB at least (H100, whole steps).
  constexpr size_t kLeastBytes = 48 << 10;
  const size_t bytes = BytesOf(p.w.dtype, p.w.rows * PaddedCols(p.w.cols));
  return HasClusters(s) && TakesSkinny(p) && p.in.rows() <= skinny::kRows &&
         bytes >= kLeastBytes * Multiprocessors(s);
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
