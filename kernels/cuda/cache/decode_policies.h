// Which policies a pass of chunks of one token knows kernels of its own for (place_decode.cu,
// attention/decode_pass.cuh).
#pragma once

#include <algorithm>
#include <span>

#include "kernels/ops/cache_memory.h"

namespace keyline::cuda {

constexpr int kMostPolicies = 16;  // of a cache

// Whether every KV head of every lane finds its slot on its own: rankings that look at all heads,
// or at all lanes, take more than a block a head.
inline bool PlacesAlone(std::span<const PolicyRule> policies) {
  return policies.size() <= kMostPolicies &&
         std::none_of(policies.begin(), policies.end(), [](const PolicyRule& rule) {
           return rule.by_score && (rule.score.errors || rule.score.shared);
         });
}

}  // namespace keyline::cuda
