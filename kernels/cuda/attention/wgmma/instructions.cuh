// The instructions of compute capability 9.0a that the kernels of this folder use: products of a
// warpgroup (four warps), barriers in shared memory, and registers that warpgroups hand over. PTX
// ISA 8, sections "Asynchronous Warpgroup Level Matrix Instructions", "mbarrier",
// "cp.async.mbarrier.arrive", "Proxies" and "setmaxnreg".
//
// Matrices in shared memory are panels of 64 elements a row (128 bytes) in the swizzle of 128
// bytes: eight rows are an atom of 1 KiB, in which the 16 bytes c of row r lie at c ^ r. That is
// one layout for both uses: q and k, whose rows run along the sum, and v, whose rows run across it.
#pragma once

#include "kernels/cuda/mma.cuh"

namespace keyline::cuda::wgmma {

constexpr int kWarpgroup = 128;  // threads
constexpr int kPanelElements = 64;
constexpr int kPanelRowBytes = 128;
constexpr int kAtomBytes = 8 * kPanelRowBytes;

// "Matrix Descriptor Format": address, offset from panel to panel (read where rows run across the
// sum), offset from atom to atom, swizzle of 128 bytes. address: a multiple of 1 KiB, or 32 bytes
// times a step of the sum more.
__device__ inline uint64_t MatrixAt(uint32_t address, uint32_t panel_bytes) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{panel_bytes >> 4} << 16 |
         uint64_t{kAtomBytes >> 4} << 32 | uint64_t{1} << 62;
}

// Registers that a product reads or writes: no use of them moves across this.
template <int kCount>
__device__ inline void Pin(float (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(r[i])::"memory");
}
template <int kCount>
__device__ inline void Pin(uint32_t (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

// Orders earlier uses of registers before the products that follow.
__device__ inline void BeginProducts() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Waits until at most `pending` groups of products are under way. Pin their registers after it.
template <int pending>
__device__ inline void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}

// MultiplyAsync: d [64, N] = (keep ? d : 0) + a [64, 16] * b, with N = 2 * (size of d). Thread i of
// the warpgroup has of d the rows i / 4 % 8 + i / 32 * 16 (elements 4n and 4n + 1) and 8 more (4n +
// 2, 4n + 3), columns 8n + i % 4 * 2 and the next; of a in registers the same rows and columns i %
// 4 * 2, the next, and those 8 further, rows first (as MultiplyAdd in mma.cuh). The first argument
// is any value of the type of a and b.
//   MultiplyAsync(T, d, matrix a, matrix b, keep): b's rows are the N outputs, along the sum.
//   MultiplyAsync(T, d, registers a, matrix b, keep): b's rows are the 16 of the sum.
#define D8(i)                                                                                 \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32 D8(0), D8(8), D8(16), D8(24)
#define D40 D32, D8(32)
#define D48 D40, D8(40)
#define D64 D48, D8(48), D8(56)
#define R32                                                                               \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R40 R32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define R48 R40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define R64 R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define OF_MATRICES(TYPE, NAME, N, REGISTERS, OUT, A, B, KEEP)                                     \
  __device__ inline void MultiplyAsync(TYPE, float(&d)[N / 2], uint64_t a, uint64_t b, int keep) { \
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" KEEP                                   \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME             \
                 " {" REGISTERS "}, %" A ", %" B ", keep, 1, 1, 0, 0;\n}\n"                        \
                 : OUT                                                                             \
                 : "l"(a), "l"(b), "r"(keep));                                                     \
  }
#define OF_REGISTERS(TYPE, NAME, N, REGISTERS, OUT, A0, A1, A2, A3, B, KEEP)                  \
  __device__ inline void MultiplyAsync(TYPE, float(&d)[N / 2], const uint32_t* a, uint64_t b, \
                                       int keep) {                                            \
    asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" KEEP                              \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME        \
                 " {" REGISTERS "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B                \
                 ", keep, 1, 1, 1;\n}\n"                                                      \
                 : OUT                                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));            \
  }
#define OF_TYPE(TYPE, NAME)                                                  \
  OF_MATRICES(TYPE, NAME, 64, R32, D32, "32", "33", "34")                    \
  OF_MATRICES(TYPE, NAME, 128, R64, D64, "64", "65", "66")                   \
  OF_REGISTERS(TYPE, NAME, 64, R32, D32, "32", "33", "34", "35", "36", "37") \
  OF_REGISTERS(TYPE, NAME, 80, R40, D40, "40", "41", "42", "43", "44", "45") \
  OF_REGISTERS(TYPE, NAME, 96, R48, D48, "48", "49", "50", "51", "52", "53") \
  OF_REGISTERS(TYPE, NAME, 128, R64, D64, "64", "65", "66", "67", "68", "69")
OF_TYPE(__nv_bfloat16, "bf16")
OF_TYPE(__half, "f16")
#undef OF_TYPE
#undef OF_REGISTERS
#undef OF_MATRICES
#undef R64
#undef R48
#undef R40
#undef R32
#undef D64
#undef D48
#undef D40
#undef D32
#undef D8

__device__ inline void StoreShared16(uint32_t address, uint4 value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// What threads or copies wrote to shared memory before is there for the products that follow.
__device__ inline void PublishToProducts() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Registers of each thread of the warpgroup from here on.
template <int kRegisters>
__device__ inline void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace keyline::cuda::wgmma
