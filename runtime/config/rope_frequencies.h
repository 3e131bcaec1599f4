// Rotary frequencies of a RopeConfig, in double. Used once, when a model is loaded.
//
// Follows transformers' modeling_rope_utils.py: default, linear, llama3 and yarn (arXiv
// 2309.00071).
#pragma once

#include <vector>

#include "runtime/config/model_config.h"

namespace keyline {

// Radians per position of each rotating pair. Returns [rotary_dim / 2]. REQUIRES: rotary_dim even
// and positive; frequency_divisors empty or of that size.
std::vector<double> InverseFrequencies(const RopeConfig& rope, int rotary_dim);

// What cosines and sines are multiplied by; 1 for all kinds but yarn.
double RopeAttentionFactor(const RopeConfig& rope);

}  // namespace keyline
