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

}  // namespace keyline
