// Block formats of GGUF files to float32.
//
// A block holds 32 (or, for the K types, 256) consecutive elements of a row with their scales; see
// ggml's ggml-common.h and ggml-quants.c (dequantize_row_*), whose arithmetic is followed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/dtype.h"

namespace keyline {

// Whether DequantizeRow knows the type: all floats and all block types.
bool CanDequantize(DType dtype);

// `elements` consecutive elements of a row. Plain floats are converted as well.
// REQUIRES: CanDequantize(dtype); elements is a multiple of the type's block.
void DequantizeRow(DType dtype, const std::byte* in, int64_t elements, float* out);

// q4_0 as q4_1: scale * (q - 8) = scale * q + min with min = -8 scale, which half precision holds
// exactly. False where it is beyond its range. REQUIRES: elements is a multiple of 32.
bool RewriteQ4_0(const std::byte* in, int64_t elements, std::byte* out);

}  // namespace keyline
