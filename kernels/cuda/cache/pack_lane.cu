// A lane's K and V to and from the form that all backends share. A warp copies one packed row: the
// codes without their padding, then scale and zero point of each block.
#include "kernels/cuda/cache/kv_layout.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {
namespace {

constexpr int kThreads = 256;

// Bytes of a packed row: of its codes, and of its scales.
struct RowBytes {
  size_t codes;
  size_t scales;

  __host__ __device__ size_t all() const { return codes + scales; }
};

RowBytes RowBytesOf(KvFormat f, int head_dim) {
  const size_t scales = KvBlocks(f, head_dim) * sizeof(float2);
  return {KvPackedRowBytes(f, head_dim) - scales, scales};
}

template <class Unit, bool kPack>
__device__ void Copy(std::byte* memory, std::byte* packed, size_t bytes) {
  auto* here = reinterpret_cast<Unit*>(memory);
  auto* there = reinterpret_cast<Unit*>(packed);
  for (size_t i = threadIdx.x % kWarp; i < bytes / sizeof(Unit); i += kWarp) {
    if constexpr (kPack) {
      there[i] = here[i];
    } else {
      here[i] = there[i];
    }
  }
}

// packed: per KV head the rows of K, then those of V. Rows are taken by warps in that order.
template <class Unit, bool kPack>
__global__ void CopyLaneKernel(KvMemory kv, int lane, int slots, std::byte* packed, RowBytes k,
                               RowBytes v) {
  const size_t rows = size_t(kv.kv_heads) * 2 * slots;
  const size_t head_bytes = slots * (k.all() + v.all());
  for (size_t i = (size_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; i < rows;
       i += size_t(gridDim.x) * (kThreads / kWarp)) {
    const int head = static_cast<int>(i / slots / 2);
    const bool is_v = i / slots % 2 != 0;
    const int slot = static_cast<int>(i % slots);
    const RowBytes bytes = is_v ? v : k;
    const KvHead memory = is_v ? HeadOf(kv.v, kv.v_format, kv, lane, head)
                               : HeadOf(kv.k, kv.k_format, kv, lane, head);
    std::byte* row = packed + head * head_bytes + (is_v ? slots * k.all() : 0) + slot * bytes.all();
    Copy<Unit, kPack>(memory.row(slot), row, bytes.codes);
    Copy<Unit, kPack>(reinterpret_cast<std::byte*>(memory.row_scales(slot)), row + bytes.codes,
                      bytes.scales);
  }
}

template <bool kPack>
void CopyLane(Stream& s, const KvMemory& kv, int lane, int slots, std::byte* packed) {
  if (slots == 0) return;
  const RowBytes k = RowBytesOf(kv.k_format, kv.head_dim);
  const RowBytes v = RowBytesOf(kv.v_format, kv.head_dim);
  const size_t warps = size_t(kv.kv_heads) * 2 * slots;
  const size_t blocks = (warps + kThreads / kWarp - 1) / (kThreads / kWarp);
  const auto grid = static_cast<unsigned>(blocks < 65536 ? blocks : 65536);
  // Odd head sizes leave packed rows at any address.
  const bool words = (k.codes | v.codes | reinterpret_cast<uintptr_t>(packed)) % 4 == 0;
  const auto kernel = words ? CopyLaneKernel<uint32_t, kPack> : CopyLaneKernel<uint8_t, kPack>;
  kernel<<<grid, kThreads, 0, Native(s)>>>(kv, lane, slots, packed, k, v);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void PackLane(Stream& s, std::byte* packed, const KvMemory& kv, int lane, int slots) {
  CopyLane<true>(s, kv, lane, slots, packed);
}

void UnpackLane(Stream& s, const KvMemory& kv, int lane, int slots, const std::byte* packed) {
  CopyLane<false>(s, kv, lane, slots, const_cast<std::byte*>(packed));  // only read
}

}  // namespace keyline::cuda
