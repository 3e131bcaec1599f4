// What the kernels of few rows are told of a product.
#pragma once

#include <cstdint>

#include "kernels/cuda/matmul/product.h"
#include "kernels/cuda/matmul/weight_layout.h"

namespace keyline::cuda {

struct Arguments {
  void* out;
  int64_t out_stride;
  const void* in;
  int64_t in_stride;
  const void* weight;
  const float* bias;
  const float* norm_weight;
  float eps;
  int rows;         // of activations
  int64_t cols;     // inputs
  int64_t padded;   // the same in the weight
  int64_t outputs;  // rows of the weight
  bool float_out;   // out is float32
  bool add;
  bool gated;
  Activation activation;
};

inline Arguments ArgumentsOf(const Product& p) {
  return {.out = p.out.data,
          .out_stride = p.out.strides[0],
          .in = p.in.data,
          .in_stride = p.in.strides[0],
          .weight = p.w.data,
          .bias = p.w.bias,
          .norm_weight = p.norm_weight,
          .eps = p.eps,
          .rows = static_cast<int>(p.in.rows()),
          .cols = p.w.cols,
          .padded = PaddedCols(p.w.cols),
          .outputs = p.w.rows,
          .float_out = p.out.dtype == DType::kF32,
          .add = p.add,
          .gated = p.gated,
          .activation = p.activation};
}

}  // namespace keyline::cuda
