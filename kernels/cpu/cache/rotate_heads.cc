// Per-head norm and rotary embedding of q and k. Rotates halves: dimension i turns with i + d / 2
// (Su et al. 2021, https://arxiv.org/abs/2104.09864, in the order of GPT-NeoX).
#include <glog/logging.h>

#include "kernels/cpu/cache/cache_ops_cpu.h"
#include "kernels/cpu/cpu_device.h"

namespace keyline::cpu {
namespace {

// Below this many head vectors a loop is not worth its barrier.
constexpr int64_t kSerialHeads = 64;

void Rotate(float* head, const Rope& rope, int32_t position) {
  const int half = rope.rotary_dim / 2;
  const float* table = rope.table + int64_t{position} * rope.rotary_dim;
  for (int i = 0; i < half; ++i) {
    const float cosine = table[2 * i];
    const float sine = table[2 * i + 1];
    const float x = head[i];
    const float y = head[i + half];
    head[i] = x * cosine - y * sine;
    head[i + half] = y * cosine + x * sine;
  }
}

}  // namespace

void RotateHeads(Stream& s, TensorView qkv, const Batch& batch, const AttentionSpec& spec) {
  const int rotated = spec.heads + spec.kv_heads;
  const KernelSet& kernels = AsCpu(s).kernels();
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / rotated;
      const int h = static_cast<int>(i % rotated);
      float* head = qkv.row<float>(token) + int64_t{h} * spec.head_dim;
      const RmsNorm& norm = h < spec.heads ? spec.q_norm : spec.k_norm;
      if (norm.weight != nullptr) {
        kernels.prepare_row(RowFormat::kF32, head, head, spec.head_dim, norm.weight, norm.eps);
      }
      if (spec.rope.rotary_dim > 0) {
        const int32_t position = batch.positions[token];
        CHECK(position >= 0 && position < spec.rope.positions)
            << "position " << position << " of " << spec.rope.positions;
        Rotate(head, spec.rope, position);
      }
    }
  };
  const int64_t heads = int64_t{batch.tokens} * rotated;
  if (heads <= kSerialHeads) {
    body(0, heads);
  } else {
    AsCpu(s).pool().ParallelFor(heads, body);
  }
}

}  // namespace keyline::cpu
