// Rows of K or V of some slots in shared memory, as the cache stores them, and their way there.
//
// A row is made of packs of 16 bytes. They lie in their order but for the last bits of their
// number, which a row turns so that eight rows' packs of one number, which is what an ldmatrix
// reads, meet eight different groups of banks.
#pragma once

#include <cstddef>
#include <numeric>

#include "kernels/cuda/cache/kv_layout.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

template <KvFormat kFormat, int kDim>
struct StoredRows {
  static constexpr int kRowBytes = KvCodeBytes(kFormat, kDim);
  static constexpr int kPacks = (kRowBytes + 15) / 16;  // of a row; half of the last may be missing
  static constexpr int kScales = KvBlocks(kFormat, kDim);
  static constexpr int kTurned = std::gcd(kPacks, 8);

  static constexpr int Bytes(int rows) { return rows * kPacks * 16; }
  static constexpr int ScaleBytes(int rows) { return rows * kScales * int{sizeof(float2)}; }

  __host__ __device__ static constexpr int Turn(int row) { return row / (8 / kTurned) % kTurned; }
  __device__ static int Offset(int row, int pack) {
    return (row * kPacks + (pack ^ Turn(row))) * 16;
  }
};

// By a warp, like all that follows: device memory to shared memory, zeros from byte `valid` on.
// kAll: there are no such. kOnce: they are read once (mma.cuh). Enqueues copies.
template <bool kAll, bool kOnce, int kBytes>
__device__ void CopyRange(std::byte* to, const void* from, int valid) {
  static_assert(kBytes % 16 == 0);
#pragma unroll
  for (int first = 0; first < kBytes; first += kWarp * 16) {
    const int at = first + static_cast<int>(threadIdx.x % kWarp) * 16;
    if (first + kWarp * 16 > kBytes && at >= kBytes) break;
    CopyAsync<16, kOnce>(to + at, static_cast<const std::byte*>(from) + at,
                         kAll ? 16 : min(max(valid - at, 0), 16));
  }
}

// Rows [first, first + kRows) of a (lane, KV head), all of them physical slots and one behind the
// other in its memory; zeros from row `valid` on, as above. Enqueues copies.
template <bool kAll, bool kOnce, class Rows, int kRows>
__device__ void CopyRows(std::byte* to, const KvHead& head, int first, int valid) {
  constexpr int kUnit = Rows::kRowBytes % 16 == 0 ? 16 : 8;
  constexpr int kUnits = Rows::kRowBytes / kUnit;  // of a row
  static_assert(Rows::kRowBytes % kUnit == 0);
  const std::byte* const from = head.codes + size_t(first) * Rows::kRowBytes;
  if constexpr (kUnit == 16 && kWarp % kUnits == 0 && kRows % (kWarp / kUnits) == 0) {
    // Whole rows at a time, a power of two of them: their turn and that of the rows before are of
    // different bits, so that what a lane adds from step to step is known here.
    constexpr int kStep = kWarp / kUnits;
    const int lane = threadIdx.x % kWarp;
    const int at = Rows::Offset(lane / kUnits, lane % kUnits);
    const std::byte* const mine = from + lane * kUnit;
#pragma unroll
    for (int row = 0; row < kRows; row += kStep) {
      CopyAsync<kUnit, kOnce>(to + (at ^ Rows::Turn(row) * 16) + row * Rows::kPacks * 16,
                              mine + row * Rows::kRowBytes,
                              kAll || row + lane / kUnits < valid ? kUnit : 0);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kRows * kUnits; k += kWarp) {
      const int i = k + static_cast<int>(threadIdx.x % kWarp);
      if (k + kWarp > kRows * kUnits && i >= kRows * kUnits) break;
      const int row = i / kUnits;
      const int in_row = i % kUnits * kUnit;
      CopyAsync<kUnit, kOnce>(to + Rows::Offset(row, in_row / 16) + in_row % 16, from + i * kUnit,
                              kAll || row < valid ? kUnit : 0);
    }
  }
}

// What a warp takes at a time: K and V of some slots of a (lane, KV head), their scales, positions
// and norms of values. Offsets in shared memory.
template <KvFormat kK, KvFormat kV, int kDim>
struct Portion {
  using K = StoredRows<kK, kDim>;
  using V = StoredRows<kV, kDim>;
  // Not with int4: of copies with a policy, ptxas of CUDA 13.0 made instructions there that no GPU
  // has.
  static constexpr bool kOnce = kK != KvFormat::kInt4 && kV != KvFormat::kInt4;
  // 16 rows of whole numbers, or 32 of codes: what one ldmatrix.x4 has of them is one product's.
  static constexpr int kSlots = IsQuantized(kK) ? 32 : 16;
  static constexpr int kValues = K::Bytes(kSlots);
  static constexpr int kKeyScales = kValues + V::Bytes(kSlots);
  static constexpr int kValueScales = kKeyScales + K::ScaleBytes(kSlots);
  static constexpr int kPositions = kValueScales + V::ScaleBytes(kSlots);
  static constexpr int kNorms = kPositions + kSlots * int{sizeof(int32_t)};
  static constexpr int kBytes = kNorms + kSlots * int{sizeof(float)};

  // Slots [first, first + kSlots), of which those below `used` count. positions, norms: of the
  // (lane, KV head); norms may be null. Enqueues copies.
  __device__ static void Fill(std::byte* to, const KvHead& k, const KvHead& v,
                              const int32_t* positions, const float* norms, int first, int used) {
    if (used - first >= kSlots) {
      FillRows<true>(to, k, v, norms, first, kSlots);
    } else {
      FillRows<false>(to, k, v, norms, first, used - first);
    }
    // Slots behind the used ones are empty and so never seen.
    CopyRange<true, kOnce, kNorms - kPositions>(to + kPositions, positions + first, 0);
  }

 private:
  template <bool kAll>
  __device__ static void FillRows(std::byte* to, const KvHead& k, const KvHead& v,
                                  const float* norms, int first, int valid) {
    CopyRows<kAll, kOnce, K, kSlots>(to, k, first, valid);
    CopyRows<kAll, kOnce, V, kSlots>(to + kValues, v, first, valid);
    if constexpr (K::kScales > 0) {
      CopyRange<kAll, kOnce, K::ScaleBytes(kSlots)>(to + kKeyScales, k.row_scales(first),
                                                    K::ScaleBytes(valid));
    }
    if constexpr (V::kScales > 0) {
      CopyRange<kAll, kOnce, V::ScaleBytes(kSlots)>(to + kValueScales, v.row_scales(first),
                                                    V::ScaleBytes(valid));
    }
    if (norms != nullptr) {
      CopyRange<kAll, kOnce, kBytes - kNorms>(to + kNorms, norms + first,
                                              valid * int{sizeof(float)});
    }
  }
};

}  // namespace keyline::cuda
