// A lane opens, and lanes come further.
#include <algorithm>

#include "kernels/cuda/cache/ranking.cuh"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"

namespace keyline::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void ClearLaneKernel(SlotTable table, int lane) {
  const size_t count = size_t(table.kv_heads) * table.slots;
  const size_t first = lane * count;
  for (size_t i = size_t(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += size_t(gridDim.x) * kThreads) {
    table.slot_pos[first + i] = -1;
    if (table.scores != nullptr) table.scores[first + i] = 0;
    if (table.value_norms != nullptr) table.value_norms[first + i] = 0;
    if (table.errors != nullptr) table.errors[first + i] = 0;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) table.progress[lane] = LaneProgress{};
}

// A thread a chunk; no lane occurs twice.
__global__ void AdvanceLanesKernel(SlotTable table, Batch batch) {
  const int c = blockIdx.x * kThreads + threadIdx.x;
  if (c >= batch.chunks) return;
  const Chunk chunk = batch.chunk[c];
  AdvanceLane(table, chunk, table.rules[chunk.lane]);
}

}  // namespace

void ClearLane(Stream& s, const SlotTable& table, int lane) {
  const size_t count = size_t(table.kv_heads) * table.slots;
  const auto blocks =
      static_cast<unsigned>(std::min<size_t>((count + kThreads - 1) / kThreads, 1024));
  ClearLaneKernel<<<blocks, kThreads, 0, Native(s)>>>(table, lane);
  CUDA_CHECK(cudaGetLastError());
}

void AdvanceLanes(Stream& s, const SlotTable& table, const Batch& batch) {
  const int blocks = (batch.chunks + kThreads - 1) / kThreads;
  AdvanceLanesKernel<<<blocks, kThreads, 0, Native(s)>>>(table, batch);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
