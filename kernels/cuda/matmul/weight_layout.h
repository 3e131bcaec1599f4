// How CUDA arranges a weight: row major, one row an output, rows padded with zeros to a multiple of
// 64 elements, so that rows begin at 128 bytes (256 in float32) and kernels need no end of a row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/dtype.h"
#include "kernels/ops/weight.h"

namespace keyline::cuda {

// Elements from one row to the next.
constexpr int64_t PaddedCols(int64_t cols) { return (cols + 63) / 64 * 64; }

}  // namespace keyline::cuda
