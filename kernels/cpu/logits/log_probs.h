// What the softmax of a row of logits needs besides the row. Logits that are NaN or infinite have
// no part in it: they count as probability zero.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cpu/isa/kernel_set.h"

namespace keyline::cpu {

struct LogitSums {
  float max = 0;
  double log_sum = 0;  // log of the sum of exp(logit)
  int64_t non_finite = 0;
  bool any_finite = false;

  float LogProb(float logit) const {
    return std::isfinite(logit) ? static_cast<float>(static_cast<double>(logit) - log_sum)
                                : -HUGE_VALF;
  }
};

LogitSums SumLogits(const KernelSet& kernels, const float* logits, int64_t vocabulary);

}  // namespace keyline::cpu
