// Weight: a matrix as its backend wants it.
//
// The memory layout and the number format belong to the weight, so that a family of models says
// `MatMul(out, in, w)` whatever the checkpoint held. Only the backend that packed a Weight reads
// it.
#pragma once

#include <cstdint>

#include "kernels/device/dtype.h"

namespace keyline {

struct Weight {
  void* data = nullptr;         // PackedBytes() bytes, device, aligned to 64
  DType dtype = DType::kF32;    // number format of the elements: a float, or q8_0, q4_1
  int64_t rows = 0;             // outputs
  int64_t cols = 0;             // inputs
  const float* bias = nullptr;  // [rows], device; null = none
};

}  // namespace keyline
