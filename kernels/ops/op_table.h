// The operations of one backend as a struct of function pointers, filled in once, with designated
// initialisers: -Werror=missing-field-initializers makes a forgotten operation a build error.
// Contracts are those of ops.h and cache_ops.h; shapes have been checked by the callers there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/weight.h"

namespace keyline {

struct OpTable {
  size_t (*packed_bytes)(DType dtype, int64_t rows, int64_t cols);
  void (*pack_rows)(const Weight& to, int64_t first, int64_t count, const float* source);
  void (*embed)(Stream&, TensorView hidden, const Batch&, const Weight& table, float scale);
  void (*norm)(Stream&, TensorView out, TensorView in, const RmsNorm&);
  void (*matmul)(Stream&, TensorView out, TensorView in, const Weight&);
  void (*matmul_add)(Stream&, TensorView out, TensorView in, const Weight&);
  void (*norm_matmul)(Stream&, TensorView out, TensorView in, const RmsNorm&, const Weight&);
  void (*norm_gated_matmul)(Stream&, TensorView out, TensorView in, const RmsNorm&, const Weight&,
                            Activation);
  void (*gather_rows)(Stream&, TensorView out, TensorView in, const int32_t* rows);
  void (*sample)(Stream&, SampledToken* out, TensorView logits, const int32_t* lanes,
                 const int32_t* positions, const SamplingParams* params);
  void (*token_log_probs)(Stream&, float* out, TensorView logits, const int32_t* targets);
  void (*top_log_probs)(Stream&, int32_t* tokens, float* logprobs, int count, TensorView logits);
};

}  // namespace keyline
