// The oracle of sampling and log-probabilities, in double, with full sorts.
#pragma once

#include <vector>

#include "kernels/ops/batch.h"

namespace keyline::reference {

// Natural log of the softmax; minus infinity where a logit is not finite.
std::vector<double> LogSoftmax(const std::vector<float>& logits);

// Probability of each token after top_k, temperature, top_p and min_p, in that order; sums to 1.
// REQUIRES: temperature > 0 and a finite logit.
std::vector<double> SamplingDistribution(const std::vector<float>& logits,
                                         const SamplingParams& params);

// Finite logits, descending; among equals the lower id first.
std::vector<int> Ranking(const std::vector<float>& logits);

}  // namespace keyline::reference
