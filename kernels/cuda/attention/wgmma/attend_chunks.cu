// Chunks of several tokens on Hopper's tensor core instructions: launches. In builds for sm_90a,
// among others or alone.
#include <algorithm>

#include "kernels/cuda/attention/wgmma/attend_chunk.cuh"
#include "kernels/cuda/attention/wgmma/mass_of_chunk.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"

namespace keyline::cuda {
namespace {

template <class Shared>
void Launch(Stream& s, void (*kernel)(AttentionArguments, int), dim3 grid,
            const AttentionArguments& a, int first_pair) {
  const cudaStream_t stream = Native(s);  // makes its device current
  constexpr size_t kMostShared = 227 << 10;
  static_assert(sizeof(Shared) <= kMostShared);
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Shared))));
  kernel<<<grid, wgmma::kThreads, sizeof(Shared), stream>>>(a, first_pair);
  CUDA_CHECK(cudaGetLastError());
}

template <class T, int kDim>
void AttendOf(Stream& s, const AttentionArguments& a, const Batch& batch) {
  const auto tiles = [](int64_t count, int size) {
    return static_cast<unsigned>((count + size - 1) / size);
  };
  const int64_t rows = int64_t{batch.max_chunk_tokens} * a.group;
  const int all = batch.chunks * a.kv.kv_heads;
  for (int first = 0; first < all; first += a.staged_pairs) {
    const unsigned pairs = std::min(all - first, a.staged_pairs);
    if (a.staged != nullptr && rows >= wgmma::kStagedRows) {
      wgmma::OrderSlots<<<dim3(1, pairs), wgmma::kOrderThreads, 0, Native(s)>>>(a, first);
      CUDA_CHECK(cudaGetLastError());
      const dim3 copies(tiles(a.kv.slots, wgmma::kCopySlots), pairs);
      wgmma::CopySlots<T, kDim><<<copies, wgmma::kCopyThreads, 0, Native(s)>>>(a, first);
      CUDA_CHECK(cudaGetLastError());
    }
    Launch<wgmma::AttendShared<T, kDim>>(s, wgmma::AttendChunk<T, kDim>,
                                         dim3(tiles(rows, wgmma::kRows), pairs), a, first);
    if (!a.wants_mass) continue;
    Launch<wgmma::MassShared<T, kDim>>(s, wgmma::MassOfChunk<T, kDim>,
                                       dim3(tiles(a.kv.slots, wgmma::kMassBlockSlots), pairs), a,
                                       first);
  }
}

}  // namespace

template <class T>
bool AttendWgmma(Stream& s, const AttentionArguments& a, const Batch& batch) {
  // Weights are compared before they are scaled.
  if (!IsHopper(s) || !(a.scale > 0)) return false;
  switch (a.kv.head_dim) {
    case 64:
      AttendOf<T, 64>(s, a, batch);
      return true;
    case 80:
      AttendOf<T, 80>(s, a, batch);
      return true;
    case 96:
      AttendOf<T, 96>(s, a, batch);
      return true;
    case 128:
      AttendOf<T, 128>(s, a, batch);
      return true;
    case 256:
      AttendOf<T, 256>(s, a, batch);
      return true;
    default:
      return false;
  }
}

template bool AttendWgmma<__half>(Stream&, const AttentionArguments&, const Batch&);
template bool AttendWgmma<__nv_bfloat16>(Stream&, const AttentionArguments&, const Batch&);

}  // namespace keyline::cuda
