// The mass of a whole pass, from weights to scores. Nobody reads these before the next pass chooses
// slots, so it runs beside what follows, products or attention (CudaStream::Beside). Before, it
// took 1.4 us of a layer's 77 of Qwen3-4B with one sequence (16,384 slots) and, of Llama-8B with 32
// sequences of 4,096 slots, 10 of 280 (H200).
#include "kernels/cuda/attention/decode/parts.cuh"
#include "kernels/cuda/cuda_check.h"

namespace keyline::cuda {
namespace {

// Grid: (kv_heads, chunks, kBlockSlots slots each). Dynamic shared memory: [group].
__global__ void __launch_bounds__(kMergeThreads, 7) TakeMassKernel(const DecodePass p) {
  extern __shared__ __align__(16) float lse[];
  const AttentionArguments& a = p.attention;
  const int chunk = static_cast<int>(blockIdx.y);
  const AttentionTask t = TaskOf(a, chunk, static_cast<int>(blockIdx.x));
  const PolicyRule& rule = p.policies[p.table.rules[t.chunk.lane].policy];
  const int begin = static_cast<int>(blockIdx.z) * SlotMass::kBlockSlots;
  if (!t.mass || begin >= t.used || !rule.by_score) return;
  const SlotMass masses(DecodeWeights(a, chunk, t.kv_head), a.group, begin, t.used);
  const size_t first = t.slot_pos - a.slot_pos + masses.first();
  float4* const scores = reinterpret_cast<float4*>(p.table.scores + first);
  constexpr int kNext = 2;  // the thread's other four slots: 8 further on
  float4 score[2] = {};
  if (masses.there()) {
    score[0] = scores[0];
    score[1] = scores[kNext];
  }
  const int splits = Splits(a, t.used).count();
  const float weighted = MergeLse(lse, a, t, chunk, splits, rule.score.value_norms);
  // Where all values are zero, no slot is worth more than another.
  const bool alike = rule.score.value_norms && !(weighted > 0);
  if (masses.there() && !alike) {
    float mass[SlotMass::kSlots];
    masses.Sum(lse, mass);
    if (rule.score.value_norms) {
#pragma unroll
      for (int i = 0; i < SlotMass::kSlots; ++i) {
        const float norm = p.table.value_norms[first + i / 4 * 8 + i % 4];
        mass[i] = __fdiv_rn(__fmul_rn(norm, mass[i]), weighted);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* const add = mass + 4 * i;
      scores[i * kNext] = make_float4(__fadd_rn(score[i].x, add[0]), __fadd_rn(score[i].y, add[1]),
                                      __fadd_rn(score[i].z, add[2]), __fadd_rn(score[i].w, add[3]));
    }
  }
  if (a.discards) masses.Discard(t.used);
}

}  // namespace

void TakeMass(cudaStream_t stream, const DecodePass& p) {
  const AttentionArguments& a = p.attention;
  constexpr int kSlots = SlotMass::kBlockSlots;
  const dim3 grid(a.kv.kv_heads, p.batch.chunks, (a.kv.slots + kSlots - 1) / kSlots);
  TakeMassKernel<<<grid, kMergeThreads, a.group * sizeof(float), stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace keyline::cuda
