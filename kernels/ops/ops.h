// THE list of operations. Each checks its shapes once (ops.cc) and calls the device's table.
//
// Outputs come first. All tensors are on the stream's device; activations have the device's
// activation type (float32 on the CPU) unless stated. Rows are tokens. An operation only enqueues,
// reads no device value on the host, and gives each row the same result whatever else is in the
// batch. A wrong shape is our bug: CHECK.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/weight.h"

namespace keyline::ops {

// ---- Weights (host side; run once, at load) ---------------------------------------------------

// Bytes that a [rows, cols] weight of `dtype` takes in this device's layout.
size_t PackedBytes(const Device& device, DType dtype, int64_t rows, int64_t cols);

// Writes source rows (float32, row major, `count` of them) as rows [first, first + count) of `to`.
// `to.data` is host memory here; the packed bytes are then copied to the device as they are.
// A packed weight (weight_blocks.h) quantises them. Several threads may pack different rows of one
// weight.
void PackRows(const Device& device, const Weight& to, int64_t first, int64_t count,
              const float* source);

// The same with rows that are blocks of to.dtype already: their numbers are kept.
// source: [count, BlockRowBytes(to.dtype, to.cols)]. REQUIRES: IsPacked(to.dtype).
void PackBlocks(const Device& device, const Weight& to, int64_t first, int64_t count,
                const std::byte* source);

// ---- A layer ----------------------------------------------------------------------------------

// hidden[t, :] = table[ids[t], :] * scale.  hidden: [tokens, dim]; table: [vocab, dim].
void Embed(Stream& s, TensorView hidden, const Batch& batch, const Weight& table, float scale);

// out = norm(in).  in, out: [n, dim]. May be done in place.
void Norm(Stream& s, TensorView out, TensorView in, const RmsNorm& norm);

// out = in * w^T (+ bias).  in: [n, w.cols]; out: [n, w.rows].
void MatMul(Stream& s, TensorView out, TensorView in, const Weight& w);

// out += in * w^T (+ bias).
void MatMulAdd(Stream& s, TensorView out, TensorView in, const Weight& w);

// out = norm(in) * w^T (+ bias).
void NormMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w);

// out = act(norm(in) * gate^T) * (norm(in) * up^T).  w: [2 * inner, dim], the gate's rows first,
// then up's; out: [n, inner].
void NormGatedMatMul(Stream& s, TensorView out, TensorView in, const RmsNorm& norm, const Weight& w,
                     Activation activation);

// out[i, :] = in[rows[i], :].  rows: int32 [n], device.
void GatherRows(Stream& s, TensorView out, TensorView in, const int32_t* rows);

// ---- The end of the model ---------------------------------------------------------------------

// One token for each row of logits.  logits: float32 [n, vocab]; lanes, positions: int32 [n],
// device: row i belongs to lanes[i] and decides the token at positions[i]; params: [lanes], device;
// out: device memory or a HostBlock of this device, which the host may read once an event that was
// recorded later is reached. Row i becomes out[*first + i]; first: [1], device, so that a recording
// can write to another place each time. drawn: [lanes], device, or null: drawn[lanes[i]] becomes
// row i's token, 0 where no logit is finite, so that the next pass can begin with it before the
// host has seen it.
void Sample(Stream& s, SampledToken* out, const int32_t* first, TensorView logits,
            const int32_t* lanes, const int32_t* positions, const SamplingParams* params,
            int32_t* drawn);

// out[i] = log softmax(logits[i, :])[targets[i]]; 0 where targets[i] < 0.  float32 [n], device.
void TokenLogProbs(Stream& s, float* out, TensorView logits, const int32_t* targets);

// The `count` <= kMaxTopLogProbs largest log-probabilities of each row, descending, lowest token id
// first among equals.  tokens, logprobs: [n, count], device.
void TopLogProbs(Stream& s, int32_t* tokens, float* logprobs, int count, TensorView logits);

// ---- Working memory ---------------------------------------------------------------------------

// Device memory that operations on passes of at most this shape take for themselves, at most.
size_t ScratchBytes(const Device& device, const PassShape& shape);

// Takes that memory, so that such passes on `s` take none later. RESOURCE_EXHAUSTED where there is
// no room.
absl::Status ReserveScratch(Stream& s, const PassShape& shape);

}  // namespace keyline::ops
