// What a block of streamed_matmul.cu has in shared memory, and in what order it goes through its
// outputs.
#pragma once

#include "kernels/cuda/matmul/skinny/tensor_map.h"
#include "kernels/cuda/matmul/skinny/tiles.cuh"

namespace keyline::cuda::skinny {

constexpr int kMultiplyWarps = 8;
constexpr int kWeightWarp = kMultiplyWarps;  // its first lane fills the ring
constexpr int kActivationWarp = kWeightWarp + 1;
constexpr int kThreads = (kActivationWarp + 1) * kWarp;

constexpr int kInputs = kMultiplyWarps * kBlock;  // of a stage
// Stages of weights on their way at most. Four have the memory busy, on an H200 too; with more,
// what activations wait behind is longer (6: as fast, all of eleven: 1 to 2 % slower).
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

// Where somebody is in a ring of kStages.
template <int kStages>
struct RingPlace {
  int stage = 0;
  int phase = 0;  // of the stage's barrier, counted from 0

  __device__ void Next() {
    if (++stage < kStages) return;
    stage = 0;
    ++phase;
  }
};

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
              sizeof(ActivationStage<8>) % kSwizzleAlignment == 0 &&
              sizeof(ActivationStage<16>) % kSwizzleAlignment == 0 &&
              sizeof(ActivationStage<32>) % kSwizzleAlignment == 0);

// Rows of the weight come to blocks in pieces, of four, so that all have as many, and as much to
// read, within a piece; of a gate and its up projection a piece has two outputs of each. A block's
// rows are whole tiles and, where they do not come out even, a rest of one to three pieces.
constexpr int kPieceRows = 4;
constexpr int kPieces = kTileRows / kPieceRows;  // of a tile
__host__ __device__ constexpr int OutputsOfPiece(bool gated) {
  return gated ? kPieceRows / 2 : kPieceRows;
}
__host__ __device__ inline int64_t PiecesOf(const Arguments& a) {
  return (OutputsOf(a) + OutputsOfPiece(a.gated) - 1) / OutputsOfPiece(a.gated);
}
constexpr int kPieceBytes = kMultiplyWarps * kPieceRows * kRowBytes;  // of a stage

// The block's tiles, in the order that all its warps go by: groups of kTilesTogether at most, as
// even as they come, and of each group the stages. The blocks of a cluster have as many groups
// each, because they share the activations; of a cluster that has one piece, one has a group of
// none.
template <int kColumns>
struct Walk {
  int first;  // output
  int end;    // behind the last
  int rest;   // pieces of the last tile, where it is not whole; else 0
  int groups;
  int stages;  // of a tile

  __device__ explicit Walk(const Arguments& a) {
    constexpr int kCluster = Sizes<kColumns>::kCluster;
    constexpr int kTilesTogether = Sizes<kColumns>::kTilesTogether;
    const auto pieces = static_cast<uint32_t>(PiecesOf(a));  // times blocks in 32 bits
    const uint32_t cluster = blockIdx.x / kCluster;
    const uint32_t clusters = gridDim.x / kCluster;
    const int block = blockIdx.x % kCluster;
    const uint32_t before_all = pieces * cluster / clusters;
    const auto all = static_cast<int>(pieces * (cluster + 1) / clusters - before_all);
    const int before = all * block / kCluster;
    const int mine = all * (block + 1) / kCluster - before;
    const int outputs = OutputsOfPiece(a.gated);
    first = (static_cast<int>(before_all) + before) * outputs;
    end = static_cast<int>(min(int64_t{first} + mine * outputs, OutputsOf(a)));
    rest = mine % kPieces;
    const int most = (all + kCluster - 1) / kCluster;  // of a block of the cluster
    groups = (most + kPieces * kTilesTogether - 1) / (kPieces * kTilesTogether);
    const int tiles = (mine + kPieces - 1) / kPieces;
    fewer_ = tiles / groups;
    longer_ = tiles % groups;
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

}  // namespace keyline::cuda::skinny
