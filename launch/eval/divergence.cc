#include "launch/eval/divergence.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>

namespace keyline {

double Divergence(std::span<const float> reference, std::span<const float> other) {
  CHECK_EQ(reference.size(), other.size());
  CHECK(!reference.empty());
  const float reference_max = *std::max_element(reference.begin(), reference.end());
  const float other_max = *std::max_element(other.begin(), other.end());
  double reference_sum = 0;
  double other_sum = 0;
  double weighted = 0;  // sum of p * (reference - other), p not yet normalised
  for (size_t i = 0; i < reference.size(); ++i) {
    const float p = std::exp(reference[i] - reference_max);
    reference_sum += p;
    other_sum += std::exp(other[i] - other_max);
    // A token that the reference rules out (logit -infinity) counts nothing.
    if (p > 0) weighted += p * (static_cast<double>(reference[i]) - other[i]);
  }
  const double log_sums =
      (reference_max + std::log(reference_sum)) - (other_max + std::log(other_sum));
  // Rounding may leave a tiny negative number where the two agree.
  return std::max(0.0, weighted / reference_sum - log_sums);
}

Price Compare(std::span<const WindowScore> reference, std::span<const WindowScore> windows,
              int first) {
  CHECK_EQ(reference.size(), windows.size());
  Price price;
  std::vector<double> deltas;  // of each window that has such rows
  for (size_t w = 0; w < windows.size(); ++w) {
    const WindowScore& window = windows[w];
    CHECK_EQ(reference[w].logprobs.size(), window.logprobs.size());
    CHECK_EQ(window.divergence.size(), window.logprobs.size() + 1);
    double delta = 0;
    int64_t tokens = 0;
    for (size_t t = first; t < window.logprobs.size(); ++t) {
      delta += static_cast<double>(reference[w].logprobs[t]) - window.logprobs[t];
      price.nll -= window.logprobs[t];
      price.divergence += window.divergence[t];
      ++tokens;
    }
    if (tokens == 0) continue;
    price.tokens += tokens;
    price.delta_nll += delta;
    deltas.push_back(delta / static_cast<double>(tokens));
  }
  if (price.tokens == 0) return price;
  const auto tokens = static_cast<double>(price.tokens);
  price.nll /= tokens;
  price.delta_nll /= tokens;
  price.divergence /= tokens;
  if (deltas.size() > 1) {
    const auto count = static_cast<double>(deltas.size());
    double mean = 0;
    for (double delta : deltas) mean += delta / count;
    double squares = 0;
    for (double delta : deltas) squares += (delta - mean) * (delta - mean);
    price.delta_nll_error = std::sqrt(squares / (count - 1) / count);
  }
  return price;
}

}  // namespace keyline
