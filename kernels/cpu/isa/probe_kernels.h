// The probes of a KernelSet: what memory and multipliers can do at best, with the same instructions
// as the tile kernels. Included only by kernels_<isa>.cc.
#pragma once

#include "kernels/cpu/isa/kernel_set.h"

namespace keyline {
namespace {

// Reads `n` blocks of 64 bytes; the sum keeps the compiler from dropping the loads.
template <class L>
float ReadBlocks(const std::byte* from, int64_t n) {
  typename L::V sum[4] = {L::Set(0.0f), L::Set(0.0f), L::Set(0.0f), L::Set(0.0f)};
  const auto* p = reinterpret_cast<const float*>(from);
  for (int64_t i = 0; i + 4 <= n; i += 4, p += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __builtin_prefetch(p + (j + 64) * kLanes);
      sum[j] = L::Add(sum[j], L::Load(p + j * kLanes));
    }
  }
  float lane[kLanes];
  L::Store(lane, L::Add(L::Add(sum[0], sum[1]), L::Add(sum[2], sum[3])));
  return lane[0];
}

// `n` rounds of one step in each of kProbeChains independent chains.
template <class L, class Product>
float MultiplyRounds(int64_t n) {
  alignas(64) std::byte data[kLanes * sizeof(float)] = {};
  typename L::V sum[kProbeChains];
#pragma GCC unroll 16
  for (int j = 0; j < kProbeChains; ++j) sum[j] = L::Set(static_cast<float>(j));
  for (int64_t i = 0; i < n; ++i) {
    asm volatile("" : : "r"(data) : "memory");  // the operands might have changed
    const typename Product::W w = Product::LoadWeights(data);
    const typename Product::A a = Product::LoadRow(data);
#pragma GCC unroll 16
    for (int j = 0; j < kProbeChains; ++j) sum[j] = Product::MulAdd(a, w, sum[j]);
  }
#pragma GCC unroll 16
  for (int j = 1; j < kProbeChains; ++j) sum[0] = L::Add(sum[0], sum[j]);
  float lane[kLanes];
  L::Store(lane, sum[0]);
  return lane[0];
}

}  // namespace
}  // namespace keyline
