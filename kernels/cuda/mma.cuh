// The tensor core instructions that the kernels use: 16 x 8 x 16 products of bf16 or f16 with
// float32 sums, the loads and copies that feed them, and the barriers that say what has come. PTX
// ISA 8, sections 9.7.14 (mma, ldmatrix, movmatrix), 9.7.9 (cp.async, cp.async.bulk), 9.7.12 (bar,
// barrier.cluster) and 9.7.13 (mbarrier).
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace keyline::cuda {

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from device to shared memory, or 16 zeros.
__device__ inline void CopyAsync16(uint32_t shared, const void* global, bool zeros) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global),
               "r"(zeros ? 0 : 16)
               : "memory");
}
__device__ inline void CopyAsync16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared), "l"(global) : "memory");
}
__device__ inline void CopyAsync16(void* shared, const void* global, bool zeros) {
  CopyAsync16(SharedAddress(shared), global, zeros);
}
// For copies of what is read once: it is the first that the L2 cache gives up. What
// createpolicy.fractional.L2::evict_first gives for all of it, as a number.
constexpr uint64_t kReadOnce = 0x12F0000000000000;
// And what createpolicy.fractional.L2::evict_last gives, for what is soon read again: it is the
// last that the cache gives up, so whoever has read much of it discards it.
constexpr uint64_t kReadSoon = 0x14F0000000000000;
__device__ inline void StoreReadSoon(void* global, uint32_t value) {
  asm volatile("st.global.L2::cache_hint.b32 [%0], %1, %2;\n" ::"l"(global), "r"(value),
               "l"(kReadSoon)
               : "memory");
}
// By `threads` threads, of which this is number `thread`: what is in [from, to) will not be read as
// it is, so that the L2 cache need not write its lines back, those that are whole.
__device__ inline void Discard(const void* from, const void* to, int thread, int threads) {
  constexpr uintptr_t kLine = 128;
  const auto begin = (reinterpret_cast<uintptr_t>(from) + kLine - 1) / kLine;
  const auto end = reinterpret_cast<uintptr_t>(to) / kLine;
  for (uintptr_t line = begin + thread; line < end; line += threads) {
    asm volatile("discard.global.L2 [%0], 128;\n" ::"l"(line * kLine) : "memory");
  }
}
// kBytes, 8 or 16, of which those from `valid` on are zeros. kOnce: with kReadOnce.
template <int kBytes, bool kOnce>
__device__ inline void CopyAsync(void* shared, const void* global, int valid) {
  static_assert(kBytes == 8 || kBytes == 16);
  const uint32_t to = SharedAddress(shared);
  if constexpr (kBytes == 16 && kOnce) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;\n" ::"r"(to),
                 "l"(global), "r"(valid), "l"(kReadOnce)
                 : "memory");
  } else if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global),
                 "r"(valid)
                 : "memory");
  } else if constexpr (kOnce) {
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 8, %2, %3;\n" ::"r"(to),
                 "l"(global), "r"(valid), "l"(kReadOnce)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(to), "l"(global), "r"(valid)
                 : "memory");
  }
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most `pending` groups of copies are under way.
template <int pending>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// A barrier in shared memory that its `arrivals`, and the bytes it was told to expect, complete,
// phase after phase. Waiting and expecting are of compute capability 9.0 and later.
struct Barrier {
  uint64_t word;

  __device__ void Init(int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(SharedAddress(&word)),
                 "r"(arrivals)
                 : "memory");
  }
  __device__ void Arrive() {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}\n" ::"r"(
                     SharedAddress(&word))
                 : "memory");
  }
  // One arrival at this barrier in the block number `block` of the cluster. What was read before
  // has been read; what was written before need not be there yet.
  __device__ void ArriveAt(int block) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(SharedAddress(&word)),
        "r"(block)
        : "memory");
  }
  // One arrival; the phase also waits for `bytes` of CopyBulk, CopyBox and the like.
  __device__ void ArriveExpecting(uint32_t bytes) {
    asm volatile(
        "{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}\n" ::
            "r"(SharedAddress(&word)),
        "r"(bytes)
        : "memory");
  }
  // One arrival, once all copies that this thread has begun have ended.
  __device__ void ArriveAfterCopies() {
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(SharedAddress(&word))
        : "memory");
  }
  // Until the phase number `phase`, counted from 0, is complete. At most one phase late.
  __device__ void Wait(int phase) const {
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
          "selp.u32 %0, 1, 0, done;\n}\n"
          : "=r"(done)
          : "r"(SharedAddress(&word)), "r"(phase & 1)
          : "memory");
    }
  }
};

// What was written to shared memory before, barriers too, is there for the bulk copies that threads
// of the block begin behind a barrier: those go another way (PTX ISA, "Proxies").
__device__ inline void PublishToCopies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// `bytes`, a multiple of 16, from device to shared memory, both aligned to 16; `barrier` expects
// them. Of compute capability 9.0 and later.
__device__ inline void CopyBulk(void* shared, const void* global, uint32_t bytes,
                                Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(&barrier.word))
      : "memory");
}
// The same into several blocks of the cluster, those whose bits `blocks` has: to the same place in
// each, and its own barrier there expects them.
__device__ inline void CopyBulkToBlocks(void* shared, const void* global, uint32_t bytes,
                                        Barrier& barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;\n" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(&barrier.word)), "h"(blocks)
      : "memory");
}
// Where a box of a tensor begins, in elements, the innermost dimension first.
template <int kDimensions>
struct BoxAt {
  int at[kDimensions];
};
// A box of the tensor that `map` tells of (skinny/tensor_map.h), which is a parameter of the kernel
// (__grid_constant__); `barrier` expects the bytes of the whole box.
__device__ inline void CopyBox(void* shared, const CUtensorMap& map, const BoxAt<4>& from,
                               Barrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;\n" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(from.at[0]), "r"(from.at[1]), "r"(from.at[2]), "r"(from.at[3]),
      "r"(SharedAddress(&barrier.word)), "l"(policy)
      : "memory");
}
__device__ inline void CopyBox(void* shared, const CUtensorMap& map, const BoxAt<3>& from,
                               Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(from.at[0]), "r"(from.at[1]), "r"(from.at[2]),
      "r"(SharedAddress(&barrier.word))
      : "memory");
}
// As CopyBulkToBlocks.
__device__ inline void CopyBoxToBlocks(void* shared, const CUtensorMap& map, const BoxAt<3>& from,
                                       Barrier& barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;\n" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(from.at[0]), "r"(from.at[1]), "r"(from.at[2]),
      "r"(SharedAddress(&barrier.word)), "h"(blocks)
      : "memory");
}
// The barrier of all threads of a cluster, in two steps. Behind the second are the Barriers that
// other blocks have published before the first, and nothing else that they wrote.
__device__ inline void PublishBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ inline void ArriveAtCluster() {
  asm volatile("barrier.cluster.arrive.relaxed;\n" ::: "memory");
}
__device__ inline void WaitForCluster() {
  asm volatile("barrier.cluster.wait.acquire;\n" ::: "memory");
}

// Barriers by number (1 to 15), for a part of the block: complete when `threads` have come or been
// counted.
__device__ inline void SyncThreads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void CountThreads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

// Four 8 x 8 tiles; lane i gives the row i % 8 of tile i / 8.
__device__ inline void LoadTiles(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row)));
}
__device__ inline void LoadTilesTransposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row)));
}

// An 8 x 8 tile, of which lane i has row i / 4, columns 2 * (i % 4) and the next, turned over.
__device__ inline uint32_t Transposed(uint32_t tile) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(r) : "r"(tile));
  return r;
}

// sum += a [16 x 16] * b [16 x 8]. Lane i has of the sum the rows i / 4 (0, 1) and i / 4 + 8 (2,
// 3), columns 2 * (i % 4) and the next.
template <class T>
__device__ void MultiplyAdd(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void MultiplyAdd<__nv_bfloat16>(float (&sum)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void MultiplyAdd<__half>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers rounded into one register, the first in the low half.
template <class T>
__device__ uint32_t PackTwo(float first, float second);
template <>
__device__ inline uint32_t PackTwo<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&two);
}
template <>
__device__ inline uint32_t PackTwo<__half>(float first, float second) {
  const __half2 two = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&two);
}

// 2^x to about 2^-22; 0 for -inf.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace keyline::cuda
