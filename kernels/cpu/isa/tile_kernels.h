// The tile kernels of a KernelSet, over any kind of 16 lanes (lanes_scalar.h). Included only by
// kernels_<isa>.cc.
//
// A product says how one 64-byte step of a tile of weights meets one row of activations. For each
// output the steps form one chain in ascending order, whatever the shape of the block.
#pragma once

#include "kernels/cpu/isa/kernel_set.h"

namespace keyline {
namespace {

constexpr int64_t kStepBytes = 64;
// How many steps ahead of the loads weights are asked for. One tile is one stream, which the
// machine follows by itself; several tiles are several streams, asked for early into the L2 cache
// and again into the L1 cache just before their use.
template <int kColumns>
constexpr int64_t kFarSteps = kColumns == 1 ? 64 : 128;
constexpr int64_t kNearSteps = 16;

template <int kColumns>
void Prefetch(const std::byte* w, int64_t far) {
  if constexpr (kColumns == 1) {
    __builtin_prefetch(w + far);
  } else {
    __builtin_prefetch(w + far, 0, 2);
    __builtin_prefetch(w + kNearSteps * kStepBytes);
  }
}

// float32 weights: one k a step.
template <class L>
struct F32Product {
  static constexpr int64_t kRowStep = 4;  // bytes of a row of activations a step
  using W = typename L::V;
  using A = typename L::V;
  static W LoadWeights(const std::byte* w) { return L::Load(reinterpret_cast<const float*>(w)); }
  static A LoadRow(const std::byte* a) { return L::Set(*reinterpret_cast<const float*>(a)); }
  static typename L::V MulAdd(A a, W w, typename L::V sum) { return L::MulAdd(a, w, sum); }
};

// bf16 weights widened to float32: two k a step, the second first, as vdpbf16ps does.
template <class L>
struct WidenedBF16Product {
  static constexpr int64_t kRowStep = 8;
  struct W {
    typename L::V first, second;
  };
  using A = W;
  static W LoadWeights(const std::byte* w) {
    const auto* pairs = reinterpret_cast<const uint16_t*>(w);
    return {L::LoadFirstOfPairs(pairs), L::LoadSecondOfPairs(pairs)};
  }
  static A LoadRow(const std::byte* a) {
    const auto* pair = reinterpret_cast<const float*>(a);
    return {L::Set(pair[0]), L::Set(pair[1])};
  }
  static typename L::V MulAdd(A a, W w, typename L::V sum) {
    return L::MulAdd(a.first, w.first, L::MulAdd(a.second, w.second, sum));
  }
};

template <class L, class Product, int kRows, int kColumns>
void MultiplyTile(const TileArgs& args) {
  using V = typename L::V;
  V sum[kRows][kColumns];  // in registers: every loop over it is unrolled
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kColumns; ++t) {
      sum[r][t] = args.first ? L::Set(0.0f) : L::Load(args.c + r * args.c_stride + t * kLanes);
    }
  }
  const int64_t a_stride = args.a_stride;
  const int64_t w_stride = args.w_stride;
  const std::byte* a = args.a;
  const std::byte* w = args.w;
  // The last steps ask for the weights that the next block starts with.
  constexpr int64_t kFar = kFarSteps<kColumns>;
  const int64_t own = args.steps > kFar ? args.steps - kFar : 0;
  for (int part = 0; part < 2; ++part) {
    const int64_t steps = part == 0 ? own : args.steps - own;
    const int64_t far = kFar * kStepBytes + (part == 0 ? 0 : args.next_offset);
    for (int64_t step = 0; step < steps; ++step) {
      typename Product::W weights[kColumns];
#pragma GCC unroll 8
      for (int t = 0; t < kColumns; ++t) {
        Prefetch<kColumns>(w + t * w_stride, far);
        weights[t] = Product::LoadWeights(w + t * w_stride);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const typename Product::A row = Product::LoadRow(a + r * a_stride);
#pragma GCC unroll 8
        for (int t = 0; t < kColumns; ++t) {
          sum[r][t] = Product::MulAdd(row, weights[t], sum[r][t]);
        }
      }
      a += Product::kRowStep;
      w += kStepBytes;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kColumns; ++t) {
      L::Store(args.c + r * args.c_stride + t * kLanes, sum[r][t]);
    }
  }
}

template <class L, class Product, int kRows, int kColumns>
constexpr void AddTileKernels(TileKernels& kernels) {
  kernels.kernel[kRows][kColumns] = &MultiplyTile<L, Product, kRows, kColumns>;
  if constexpr (kColumns > 1) AddTileKernels<L, Product, kRows, kColumns - 1>(kernels);
}

template <class L, class Product, int kRows, int kColumns>
constexpr void AddRows(TileKernels& kernels) {
  AddTileKernels<L, Product, kRows, kColumns>(kernels);
  if constexpr (kRows > 1) AddRows<L, Product, kRows - 1, kColumns>(kernels);
}

// Tile kernels for blocks of up to kRows rows and kColumns tiles.
template <class L, class Product, int kRows, int kColumns>
constexpr TileKernels MakeTileKernels(RowFormat format) {
  TileKernels kernels;
  kernels.row_format = format;
  kernels.rows = kRows;
  kernels.columns = kColumns;
  AddRows<L, Product, kRows, kColumns>(kernels);
  return kernels;
}

}  // namespace
}  // namespace keyline
