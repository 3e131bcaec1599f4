// Adds attention mass to the scores of slots. The same roundings as on the CPU but for the one sum
// of the value-norm rule.
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/reduce.cuh"

namespace keyline::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 1024;

// Blocks: ranges of slots x KV heads x chunks.
struct Target {
  const float* mass;  // of the chunk, [slots]
  size_t row;         // of the lane and head in the arrays of the table
  int used;           // slots in use; 0: nothing to add
};

__device__ inline bool Takes(const SlotTable& table, const Chunk& chunk, int policy) {
  return chunk.takes_mass && table.rules[chunk.lane].policy == policy;
}

__device__ inline const float* MassOf(const SlotTable& table, const float* mass, int chunk,
                                      int head) {
  return mass + (size_t(chunk) * table.kv_heads + head) * table.slots;
}

__device__ inline Target TargetOf(const SlotTable& table, const float* mass, const Batch& batch,
                                  int policy, int c, int head) {
  const Chunk chunk = batch.chunk[c];
  Target target = {MassOf(table, mass, c, head),
                   (size_t(chunk.lane) * table.kv_heads + head) * table.slots, 0};
  if (Takes(table, chunk, policy)) {
    target.used = min(table.rules[chunk.lane].length, chunk.first_position + chunk.tokens);
  }
  return target;
}

// shared: the mass of all chunks of the policy, in their order.
__global__ void AddMassKernel(SlotTable table, const float* mass, Batch batch, int policy,
                              bool shared) {
  const int head = blockIdx.y;
  const Target target = TargetOf(table, mass, batch, policy, blockIdx.z, head);
  const int j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= target.used) return;
  float score = table.scores[target.row + j];
  if (!shared) {
    score = __fadd_rn(score, target.mass[j]);
  } else {
    for (int other = 0; other < batch.chunks; ++other) {
      if (!Takes(table, batch.chunk[other], policy)) continue;
      score = __fadd_rn(score, MassOf(table, mass, other, head)[j]);
    }
  }
  table.scores[target.row + j] = score;
}

// score_j += n * (|v_j| * mass_j) / sum over k of |v_k| * mass_k. A block a row.
__global__ void __launch_bounds__(kRowThreads)
    AddWeightedMassKernel(SlotTable table, const float* mass, Batch batch, int policy) {
  const Target target = TargetOf(table, mass, batch, policy, blockIdx.z, blockIdx.y);
  if (target.used == 0) return;  // the whole block
  const float* norm = table.value_norms + target.row;
  float sum = 0;
#pragma unroll 4
  for (int j = threadIdx.x; j < target.used; j += kRowThreads) {
    sum = fmaf(norm[j], target.mass[j], sum);
  }
  sum = ReduceBlock(sum, Plus(), 0.0f);
  if (!(sum > 0)) return;  // all values are zero and no slot is worth more than another
  const auto n = static_cast<float>(batch.chunk[blockIdx.z].tokens);
  float* score = table.scores + target.row;
#pragma unroll 4
  for (int j = threadIdx.x; j < target.used; j += kRowThreads) {
    const float share = __fmul_rn(n, __fmul_rn(norm[j], target.mass[j]));
    score[j] = __fadd_rn(score[j], __fdiv_rn(share, sum));
  }
}

}  // namespace

void AddScores(Stream& s, const SlotTable& table, const float* mass, const Batch& batch, int policy,
               const ScoreRule& rule) {
  if (rule.value_norms && !rule.shared) {
    const dim3 grid(1, table.kv_heads, batch.chunks);
    AddWeightedMassKernel<<<grid, kRowThreads, 0, Native(s)>>>(table, mass, batch, policy);
  } else {
    const dim3 grid((table.slots + kThreads - 1) / kThreads, table.kv_heads, batch.chunks);
    AddMassKernel<<<grid, kThreads, 0, Native(s)>>>(table, mass, batch, policy, rule.shared);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
