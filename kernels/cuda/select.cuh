// The lowest keys of a row without sorting it: radix search, eight bits a pass, in one block or,
// for rows as long as a vocabulary, in a cluster of blocks.
//
// Keys are 64 bits, all different: what is ranked in the high half (Orderable), the index in the
// low half, so that equals go by the lowest index. Every key has an amount, which may depend on its
// high half; amounts are integers, so no result depends on the order in which they were added.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {

constexpr int kSelectThreads = 512;  // all functions here are called by blocks of this size
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kBins = 256;
constexpr int kSelectAhead = 4;            // keys that a thread reads at a time
constexpr uint64_t kNoKey = ~uint64_t{0};  // takes no part

// Ascending with the float, NaN as infinity, the two zeros equal.
__device__ inline uint32_t Orderable(float x) {
  if (x != x) x = __int_as_float(0x7f800000);
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float FromOrderable(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Working memory of a block, in shared memory.
struct SelectMemory {
  // One histogram a warp, so that hot bins are not fought over.
  uint64_t warp[kSelectWarps][kBins];
  uint64_t all[kBins];
  uint64_t before;  // the amounts of bins ahead of `digit`
  uint64_t amount;  // and of that bin
  int digit;
  int taken;
};

// One, of every key.
struct CountKeys {
  __device__ uint64_t operator()(uint64_t) const { return 1; }
};

// Adds each valid thread's amount (below 2^41) to its warp's bin. The first pass sees few different
// digits, later ones few valid threads.
__device__ inline void AddToBins(uint64_t* bins, int digit, uint64_t amount, bool valid) {
  constexpr int kRounds = 3;
  const int lane = threadIdx.x % kWarp;
  unsigned left = __ballot_sync(kAllLanes, valid);
  for (int round = 0; round < kRounds && left != 0; ++round) {
    const int leader = __ffs(left) - 1;
    const int common = __shfl_sync(kAllLanes, digit, leader);
    const bool mine = valid && digit == common;
    const uint64_t x = mine ? amount : 0;
    const uint64_t low = __reduce_add_sync(kAllLanes, static_cast<unsigned>(x & 0xfffff));
    const uint64_t high = __reduce_add_sync(kAllLanes, static_cast<unsigned>(x >> 20));
    if (lane == leader) bins[common] += low + (high << 20);
    left &= ~__ballot_sync(kAllLanes, mine);
  }
  if (left >> lane & 1) {
    atomicAdd(reinterpret_cast<unsigned long long*>(bins + digit), amount);
  }
  __syncwarp();
}

// The same for amounts of one. Fewer than 2^32 of them: the low half of a bin has them all.
__device__ inline void CountInBins(uint64_t* bins, int digit, bool valid) {
  const int lane = threadIdx.x % kWarp;
  const unsigned left = __ballot_sync(kAllLanes, valid);
  if (left == 0) return;
  const int leader = __ffs(left) - 1;
  const int digit_of_leader = __shfl_sync(kAllLanes, digit, leader);
  const bool common = valid && digit == digit_of_leader;
  const int alike = __popc(__ballot_sync(kAllLanes, common));
  if (lane != leader && (common || !valid)) return;
  atomicAdd(reinterpret_cast<unsigned*>(bins + digit), lane == leader ? alike : 1);
}

// The first bin at which `before` and the bins up to it reach `target`. Called by one warp.
__device__ inline void FindBin(SelectMemory& memory, uint64_t before, uint64_t target) {
  constexpr int kPerLane = kBins / kWarp;
  const int lane = threadIdx.x % kWarp;
  const uint64_t* bins = memory.all + lane * kPerLane;
  uint64_t sum = 0;
  for (int i = 0; i < kPerLane; ++i) sum += bins[i];
  uint64_t until = sum;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, until, offset);
    if (lane >= offset) until += other;
  }
  uint64_t ahead = before + until - sum;
  if (ahead < target && ahead + sum >= target) {
    int i = 0;
    while (ahead + bins[i] < target) ahead += bins[i++];
    memory.digit = lane * kPerLane + i;
    memory.before = ahead;
    memory.amount = bins[i];
  }
}

// What blocks that share a row do together: those of a cluster or, where there are no clusters, the
// one that has all of it.
constexpr int kClusterBlocks = 8;  // as many as every GPU with clusters takes

// As a cluster of one.
struct LoneBlock {
  __device__ unsigned block_rank() const { return 0; }
  __device__ void sync() const { __syncthreads(); }
  template <class T>
  __device__ T* map_shared_rank(T* memory, int /*rank*/) const {
    return memory;
  }
};

template <int kBlocks>
__device__ auto BlocksOfRow() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return LoneBlock();
#else
  if constexpr (kBlocks == 1) {
    return LoneBlock();
  } else {
    return cooperative_groups::this_cluster();
  }
#endif
}

// Adds up the bins of all blocks of the row, the exchange of LimitKey.
template <int kBlocks>
struct RowSum {
  __device__ void operator()(uint64_t* bins) const {
    const auto blocks = BlocksOfRow<kBlocks>();
    blocks.sync();  // all have filled theirs
    uint64_t sum = 0;
    if (threadIdx.x < kBins) {
      for (int r = 0; r < kBlocks; ++r) sum += blocks.map_shared_rank(bins, r)[threadIdx.x];
    }
    blocks.sync();  // all have read
    if (threadIdx.x < kBins) bins[threadIdx.x] = sum;
    __syncthreads();
  }
};

// The same where no others share the row.
struct NoExchange {
  __device__ void operator()(uint64_t*) const { __syncthreads(); }
};

// L such that the keys <= L of [begin, end) are the lowest whose amounts together reach `target`.
// key_of(i): the key of item i, or kNoKey. amount_of(key): its amount. id_bits: bits of the largest
// index. exchange: sums the bins over all blocks of the row, and is a barrier.
// REQUIRES: 1 <= target <= the sum of all amounts.
template <class KeyOf, class AmountOf, class Exchange>
__device__ uint64_t LimitKey(SelectMemory& memory, int64_t begin, int64_t end, uint64_t target,
                             int id_bits, const KeyOf& key_of, const AmountOf& amount_of,
                             const Exchange& exchange) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  uint64_t prefix = 0;  // of L, zeros below the bits known
  uint64_t before = 0;  // amounts of keys below the prefix
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (shift < 32 && shift >= id_bits) continue;  // zero in all of them
    const uint64_t known = shift == 56 ? 0 : kNoKey << (shift + 8);
    uint64_t* bins = &memory.warp[0][0];
    for (int i = threadIdx.x; i < kSelectWarps * kBins; i += kSelectThreads) bins[i] = 0;
    __syncthreads();
    for (int64_t base = begin + warp * kWarp; base < end; base += kSelectAhead * kSelectThreads) {
      uint64_t keys[kSelectAhead];
#pragma unroll
      for (int j = 0; j < kSelectAhead; ++j) {
        const int64_t i = base + j * kSelectThreads + lane;
        keys[j] = i < end ? key_of(i) : kNoKey;
      }
#pragma unroll
      for (const uint64_t key : keys) {
        const bool valid = key != kNoKey && (key & known) == prefix;
        const int digit = static_cast<int>(key >> shift & (kBins - 1));
        if constexpr (std::is_same_v<AmountOf, CountKeys>) {
          CountInBins(memory.warp[warp], digit, valid);
        } else {
          AddToBins(memory.warp[warp], digit, valid ? amount_of(key) : 0, valid);
        }
      }
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < kBins; bin += kSelectThreads) {
      uint64_t sum = 0;
      for (int w = 0; w < kSelectWarps; ++w) sum += memory.warp[w][bin];
      memory.all[bin] = sum;
    }
    exchange(memory.all);
    if (warp == 0) FindBin(memory, before, target);
    __syncthreads();
    prefix |= static_cast<uint64_t>(memory.digit) << shift;
    before = memory.before;
    const uint64_t amount = memory.amount;
    const bool whole = before + amount == target;
    // With the high half known all keys left have the same amount: is there but one?
    const bool single = shift <= 32 && amount <= amount_of(prefix);
    __syncthreads();  // all have read what the next pass overwrites
    if (whole || single) return prefix | ((uint64_t{1} << shift) - 1);
  }
  return prefix;
}

__host__ __device__ constexpr int PowerOfTwoFrom(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// Sorts `size` keys, ascending. size: a power of two. Ends with a barrier.
__device__ inline void SortKeys(uint64_t* keys, int size) {
  __syncthreads();
  for (int width = 2; width <= size; width *= 2) {
    for (int stride = width / 2; stride > 0; stride /= 2) {
      for (int t = threadIdx.x; t < size / 2; t += kSelectThreads) {
        const int i = 2 * t - (t & (stride - 1));
        const bool ascending = (i & width) == 0;
        const uint64_t a = keys[i];
        const uint64_t b = keys[i + stride];
        if ((a > b) == ascending) {
          keys[i] = b;
          keys[i + stride] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The same for any number of them, with room for PowerOfTwoFrom(count).
__device__ inline void PadAndSortKeys(uint64_t* keys, int count) {
  const int size = PowerOfTwoFrom(count);
  for (int i = count + threadIdx.x; i < size; i += kSelectThreads) keys[i] = kNoKey;
  SortKeys(keys, size);
}

// The `count` lowest keys, ascending, into out: PowerOfTwoFrom(count) keys, which may be
// memory.warp. REQUIRES: 1 <= count <= end - begin, and every item has a key.
template <class KeyOf>
__device__ void SelectLowest(SelectMemory& memory, int64_t begin, int64_t end, int count,
                             int id_bits, const KeyOf& key_of, uint64_t* out) {
  const uint64_t limit =
      LimitKey(memory, begin, end, count, id_bits, key_of, CountKeys(), NoExchange());
  if (threadIdx.x == 0) memory.taken = 0;
  __syncthreads();
#pragma unroll kSelectAhead
  for (int64_t i = begin + threadIdx.x; i < end; i += kSelectThreads) {
    const uint64_t key = key_of(i);
    if (key <= limit) out[atomicAdd(&memory.taken, 1)] = key;
  }
  PadAndSortKeys(out, count);
}

}  // namespace keyline::cuda
