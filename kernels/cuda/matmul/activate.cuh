// Activation functions, in float32.
#pragma once

#include "kernels/ops/batch.h"

namespace keyline::cuda {

__device__ inline float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0f + expf(-x));
    case Activation::kGeluTanh:
      // 0.5 x (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
      return x / (1.0f + expf(-1.59576912f * (x + 0.044715f * x * x * x)));
    case Activation::kGelu:
      return 0.5f * x * erfcf(x * -0.707106781f);
  }
  return 0;
}

}  // namespace keyline::cuda
