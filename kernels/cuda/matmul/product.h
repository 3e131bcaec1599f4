// The ways of a matrix product. Private to this folder; matmul.cu chooses.
#pragma once

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/weight.h"

namespace keyline::cuda {

// Rows up to which a product is one pass of our own kernels over the weights: on tensor cores, and
// without.
constexpr int kSkinnyRows = 32;
constexpr int kSmallRows = 16;
// Rows up to which packed weights are read anew for every kSkinnyRows, rather than dequantised.
constexpr int kPackedSkinnyRows = 64;

// out = in * w^T, in the weight's format throughout; out may be float32 besides. A packed weight
// takes activations of any float.
struct Product {
  TensorView out;
  TensorView in;
  Weight w;
  const float* norm_weight = nullptr;  // null: rows as they are; else normed first
  float eps = 0;
  bool add = false;    // to what out holds
  bool gated = false;  // out = act(first half of the outputs) * second half
  Activation activation = Activation::kSilu;
};

// small_matmul.cu: all of Product. REQUIRES: at most kSmallRows rows. A row's result does not
// depend on the others.
void SmallProduct(Stream& s, const Product& product);

// skinny/skinny_matmul.cu: the same on tensor cores, for bf16 and f16, of up to kSkinnyRows rows; a
// norm of so many only where TakesStreamed, of up to 8 elsewhere. Takes rows that begin at
// multiples of 16 bytes.
bool TakesSkinny(Stream& s, const Product& product);
void SkinnyProduct(Stream& s, const Product& product);

// skinny/streamed_matmul.cu: the same, where the device has compute capability 9.0 or later and as
// much shared memory, and the weight is large enough and has inputs in whole blocks of 64.
bool TakesStreamed(Stream& s, const Product& product);
void StreamedProduct(Stream& s, const Product& product);

// packed_matmul.cu: what SmallProduct does, on tensor cores with packed weights and bf16 or f16
// activations, of up to kSkinnyRows rows, 8 with a norm; what it is gated by comes in whole tiles.
bool TakesPacked(const Product& product);
void PackedProduct(Stream& s, const Product& product);

// packed_matmul.cu: rows [first, first + count) of a packed weight as a plain one of `dtype`.
// out: [count, PaddedCols(w.cols)].
void Dequantize(Stream& s, void* out, DType dtype, const Weight& w, int64_t first, int64_t count);

// large_matmul.cc, cuBLASLt: out = in * w^T, or added to out; no norm, bias or gate.
void LargeProduct(Stream& s, TensorView out, TensorView in, const Weight& w, bool add);

}  // namespace keyline::cuda
