// What a block of streamed_matmul.cu has in shared memory, and in what order it goes through its
// outputs.
#pragma once

#include <algorithm>
#include <cstdint>

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

// Byte of a lane's row and chunk in a stage of a tile, as LoadTiles takes them, for the warp's
// first 16 inputs. What is behind the rest's last piece is read too, and nothing comes of it.
__device__ inline int WeightAt(bool gated, bool rest) {
  const int warp = threadIdx.x / kWarp;
  const int row = threadIdx.x % kTileRows;
  const int chunk = threadIdx.x % kWarp / kTileRows;
  if (!rest) return Swizzled(warp * kTileRows + row, chunk);
  const int piece = gated ? row % 8 / 2 : row / kPieceRows;
  const int of_piece = gated ? row / 8 * 2 + row % 2 : row % kPieceRows;
  return piece * kPieceBytes + Swizzled(warp * kPieceRows + of_piece, chunk);
}

// What a launch works out for its blocks: the pieces of a cluster, and one more in the first `more`
// clusters; groups of tiles of a block; and stages of a tile.
struct Shares {
  int each;
  int more;
  int groups;
  uint32_t of_groups;  // 2^32 / groups, rounded up
  int stages;
};

template <int kColumns>
Shares SharesOf(const Arguments& a, int64_t clusters) {
  const auto in_parts = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
  const int64_t pieces = PiecesOf(a);
  const int64_t of_block = in_parts(in_parts(pieces, clusters), Sizes<kColumns>::kCluster);
  const int64_t groups = in_parts(of_block, kPieces * Sizes<kColumns>::kTilesTogether);
  const int64_t of_groups = in_parts(int64_t{1} << 32, groups);
  // As many tiles are divided by it exactly.
  CHECK_LT(of_block * groups, int64_t{1} << 32) << "outputs of a block";
  return {.each = static_cast<int>(pieces / clusters),
          .more = static_cast<int>(pieces % clusters),
          .groups = static_cast<int>(groups),
          .of_groups = static_cast<uint32_t>(std::min<int64_t>(of_groups, UINT32_MAX)),
          .stages = static_cast<int>(in_parts(a.padded, kInputs))};
}

// The block's tiles, in the order that all its warps go by: groups of kTilesTogether at most, as
// even as they come, and of each group the stages. All blocks have as many groups, since those of a
// cluster share the activations; where there is next to nothing to do, one may have a group of
// none. Nothing is divided here: the first copies wait for it.
template <int kColumns>
struct Walk {
  int first;  // output
  int end;    // behind the last
  int rest;   // pieces of the last tile, where it is not whole; else 0
  int groups;
  int stages;  // of a tile

  __device__ Walk(const Arguments& a, const Shares& shares) {
    constexpr int kCluster = Sizes<kColumns>::kCluster;
    const int cluster = static_cast<int>(blockIdx.x) / kCluster;
    const int block = static_cast<int>(blockIdx.x) % kCluster;
    const int all = shares.each + (cluster < shares.more ? 1 : 0);
    const int before = all * block / kCluster;
    const int mine = all * (block + 1) / kCluster - before;
    const int outputs = OutputsOfPiece(a.gated);
    first = (cluster * shares.each + min(cluster, shares.more) + before) * outputs;
    end = min(first + mine * outputs, static_cast<int>(OutputsOf(a)));
    rest = mine % kPieces;
    groups = shares.groups;
    stages = shares.stages;
    const int tiles = (mine + kPieces - 1) / kPieces;
    // tiles / groups, or one less where groups is 1; then the one group is one of the longer ones.
    fewer_ = static_cast<int>(__umulhi(static_cast<uint32_t>(tiles), shares.of_groups));
    longer_ = tiles - fewer_ * groups;
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
