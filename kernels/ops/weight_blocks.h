// Packed formats of weights: blocks of 32 inputs of a row with their own scale, as GGUF files have
// them. A backend lays the blocks out anew (ops::PackBlocks) but keeps every number.
//
//   q8_0 ("int8"): w = scale * code, code in [-128, 127]
//   q4_1 ("int4"): w = scale * code + min, code in [0, 15]
// A row of `cols` inputs has BlocksOf(cols) blocks; inputs past the end count as code 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/dtype.h"

namespace keyline {

constexpr int kWeightBlock = 32;

// As they lie in memory: little endian, no padding.
struct BlockQ8 {
  uint16_t scale;  // half precision
  int8_t codes[kWeightBlock];
};
struct BlockQ4 {
  uint16_t scale;
  uint16_t min;
  uint8_t codes[kWeightBlock / 2];  // element i in the low, i + 16 in the high nibble
};
static_assert(sizeof(BlockQ8) == TraitsOf(DType::kQ8_0).block_bytes);
static_assert(sizeof(BlockQ4) == TraitsOf(DType::kQ4_1).block_bytes);

constexpr bool IsPacked(DType dtype) { return dtype == DType::kQ8_0 || dtype == DType::kQ4_1; }

constexpr int64_t BlocksOf(int64_t cols) { return (cols + kWeightBlock - 1) / kWeightBlock; }

// Bytes of a row of blocks. REQUIRES: IsPacked(dtype).
constexpr int64_t BlockRowBytes(DType dtype, int64_t cols) {
  return BlocksOf(cols) * TraitsOf(dtype).block_bytes;
}

// A row of numbers as blocks. int8: the largest becomes 127, so an element is off by at most half a
// scale, 1/254 of the block's largest, and what rounding the scale to 16 bits adds; int4: between
// the least and the largest, moved towards the least squared error. A block with a number that is
// not finite becomes NaN.
// out: BlockRowBytes(dtype, cols). REQUIRES: IsPacked(dtype).
void QuantizeRow(DType dtype, const float* in, int64_t cols, std::byte* out);

}  // namespace keyline
