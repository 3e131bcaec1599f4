// The tile kernels of packed weights, over any kind of integer lanes (I). Included only by
// kernels_<isa>.cc.
//
// A block's 32 products are integers and their sum is exact, in whatever order an instruction set
// takes them; blocks form one chain of fused multiply-adds for each output. So every instruction
// set gives the same bits. Bound by reading weights while there are few rows: a weight is unpacked
// once for all rows of the kernel.
#pragma once

#include "kernels/cpu/isa/kernel_set.h"

namespace keyline {
namespace {

// int8: w = scale * code.
template <class I>
struct Q8Weights {
  using Block = TileBlockQ8;
  typename I::F scale;
  typename I::Signed codes[kBlockGroups];

  Q8Weights(const Block& block, int lane) : scale(I::LoadHalves(block.scale + lane)) {
#pragma GCC unroll 8
    for (int g = 0; g < kBlockGroups; ++g) codes[g] = I::LoadSigned(&block.codes[g][lane][0]);
  }
  typename I::F MulAdd(const RowBlock& row, typename I::F sum) const {
    typename I::SignedSum dot = I::SignedZero(row.sum);
#pragma GCC unroll 8
    for (int g = 0; g < kBlockGroups; ++g) {
      dot = I::DotSigned(dot, codes[g], row.codes + g * kGroupInputs);
    }
    return I::MulAdd(I::ToFloat(dot), I::Mul(scale, I::Set(row.scale)), sum);
  }
};

// int4: w = scale * code + min.
template <class I>
struct Q4Weights {
  using Block = TileBlockQ4;
  typename I::F scale, min;
  typename I::Bytes codes[kBlockGroups];

  Q4Weights(const Block& block, int lane)
      : scale(I::LoadHalves(block.scale + lane)), min(I::LoadHalves(block.min + lane)) {
#pragma GCC unroll 4
    for (int g = 0; g < kBlockGroups / 2; ++g) {
      const typename I::Bytes pairs = I::LoadBytes(&block.codes[g][lane][0]);
      codes[g] = I::LowNibbles(pairs);
      codes[g + kBlockGroups / 2] = I::HighNibbles(pairs);
    }
  }
  typename I::F MulAdd(const RowBlock& row, typename I::F sum) const {
    typename I::NibbleSum dot = I::NibbleZero();
#pragma GCC unroll 8
    for (int g = 0; g < kBlockGroups; ++g) {
      dot = I::DotNibbles(dot, codes[g], row.codes + g * kGroupInputs);
    }
    sum = I::MulAdd(I::ToFloat(dot), I::Mul(scale, I::Set(row.scale)), sum);
    return I::MulAdd(min, I::Set(row.scaled_sum), sum);
  }
};

template <class I, template <class> class Weights, int kRows>
void MultiplyBlocks(const TileArgs& args) {
  using Block = typename Weights<I>::Block;
  constexpr int kParts = kLanes / I::kOutputs;
  typename I::F sum[kRows][kParts];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      sum[r][p] = args.first ? I::Set(0.0f) : I::Load(args.c + r * args.c_stride + p * I::kOutputs);
    }
  }
  const std::byte* a = args.a;
  const std::byte* w = args.w;
  for (int64_t step = 0; step < args.steps; ++step) {
#pragma GCC unroll 9
    for (size_t line = 0; line < sizeof(Block); line += 64) {
      __builtin_prefetch(w + I::kPrefetchBytes + line);
    }
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      const Weights<I> weights(*reinterpret_cast<const Block*>(w), p * I::kOutputs);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto& row = *reinterpret_cast<const RowBlock*>(a + r * args.a_stride);
        sum[r][p] = weights.MulAdd(row, sum[r][p]);
      }
    }
    a += sizeof(RowBlock);
    w += sizeof(Block);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      I::Store(args.c + r * args.c_stride + p * I::kOutputs, sum[r][p]);
    }
  }
}

template <class I, template <class> class Weights, int kRows>
constexpr void AddBlockKernels(TileKernels& kernels) {
  kernels.kernel[kRows][1] = &MultiplyBlocks<I, Weights, kRows>;
  if constexpr (kRows > 1) AddBlockKernels<I, Weights, kRows - 1>(kernels);
}

// Tile kernels for blocks of up to kRows rows, one tile at a time.
template <class I, template <class> class Weights, int kRows>
constexpr TileKernels MakeBlockKernels() {
  TileKernels kernels;
  kernels.row_format = RowFormat::kInt8Blocks;
  kernels.rows = kRows;
  kernels.columns = 1;
  AddBlockKernels<I, Weights, kRows>(kernels);
  return kernels;
}

}  // namespace
}  // namespace keyline
