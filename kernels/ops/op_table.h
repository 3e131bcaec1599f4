// The operations of one backend as a struct of function pointers, filled in once, with designated
// initialisers: -Werror=missing-field-initializers makes a forgotten operation a build error.
// Contracts are those of ops.h and cache_ops.h; shapes have been checked by the callers there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"
#include "kernels/ops/weight.h"

namespace keyline {

struct OpTable {
  size_t (*packed_bytes)(DType dtype, int64_t rows, int64_t cols);
  void (*pack_rows)(const Weight& to, int64_t first, int64_t count, const float* source);
  void (*pack_blocks)(const Weight& to, int64_t first, int64_t count, const std::byte* source);
  void (*embed)(Stream&, TensorView hidden, const Batch&, const Weight& table, float scale);
  void (*norm)(Stream&, TensorView out, TensorView in, const RmsNorm&);
  void (*matmul)(Stream&, TensorView out, TensorView in, const Weight&);
  void (*matmul_add)(Stream&, TensorView out, TensorView in, const Weight&);
  void (*norm_matmul)(Stream&, TensorView out, TensorView in, const RmsNorm&, const Weight&);
  void (*norm_gated_matmul)(Stream&, TensorView out, TensorView in, const RmsNorm&, const Weight&,
                            Activation);
  void (*gather_rows)(Stream&, TensorView out, TensorView in, const int32_t* rows);
  void (*sample)(Stream&, SampledToken* out, const int32_t* first, TensorView logits,
                 const int32_t* lanes, const int32_t* positions, const SamplingParams* params,
                 int32_t* drawn);
  void (*token_log_probs)(Stream&, float* out, TensorView logits, const int32_t* targets);
  void (*top_log_probs)(Stream&, int32_t* tokens, float* logprobs, int count, TensorView logits);

  // The KV cache (cache_ops.h).
  void (*clear_lane)(Stream&, const SlotTable&, int lane);
  void (*place_in_ring)(Stream&, const Placement& out, const Batch&, const SlotTable&, int policy);
  void (*place_by_score)(Stream&, const Placement& out, const Batch&, const SlotTable&, int policy,
                         const ScoreRule&);
  void (*move_slots)(Stream&, const KvMemory&, const SlotTable&, const Placement&, const Batch&);
  void (*rotate_and_write)(Stream&, const KvMemory&, const SlotTable&, const Placement&,
                           TensorView qkv, const Batch&, const AttentionSpec&);
  void (*attention)(Stream&, TensorView out, float* mass, TensorView qkv, const Batch&,
                    const KvMemory&, const SlotTable&, const AttentionSpec&);
  // These two may be null: a backend without.
  bool (*place_decode)(Stream&, std::span<const PlacedCache> layers, const Batch&,
                       std::span<const PolicyRule> policies);
  bool (*attend_decode)(Stream&, TensorView out, TensorView qkv, const Batch&, const KvMemory&,
                        const SlotTable&, const Placement&, const AttentionSpec&,
                        std::span<const PolicyRule> policies);
  void (*add_scores)(Stream&, const SlotTable&, const float* mass, const Batch&, int policy,
                     const ScoreRule&);
  void (*advance_lanes)(Stream&, const SlotTable&, const Batch&);
  void (*pack_lane)(Stream&, std::byte* packed, const KvMemory&, int lane, int slots);
  void (*unpack_lane)(Stream&, const KvMemory&, int lane, int slots, const std::byte* packed);

  // Working memory that the operations of any pass of this shape need at most.
  size_t (*scratch_bytes)(const PassShape&);
  absl::Status (*reserve_scratch)(Stream&, const PassShape&);

  // What the device can do at best, the denominators of benchmarks (probe.h).
  // Enqueues a read of `bytes` of memory, a multiple of 4096, aligned to 256, that keeps nothing.
  void (*read_memory)(Stream&, const void* memory, size_t bytes);
  // Floating point operations a second of matrix products of `dtype` (kF32, kBF16 or kF16); waits.
  double (*multiply_rate)(Stream&, DType dtype);
  // Bytes a second from pinned host memory to the device; 0 where they are the same. Waits.
  double (*upload_rate)(Stream&);
};

}  // namespace keyline
