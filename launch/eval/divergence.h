// The arithmetic of `keyline eval`: how far the distributions under one cache are from those under
// another. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace keyline {

// KL(reference || other) in nats of the distributions softmax(reference) and softmax(other).
// Differences and sums are double; equal rows give exactly 0.
double Divergence(std::span<const float> reference, std::span<const float> other);

// A window of n tokens under one cache. Row t is what the model says after token t.
struct WindowScore {
  std::vector<float> logprobs;     // [n - 1] of token t + 1 by row t
  std::vector<double> divergence;  // [n] of row t from the reference's
};

// Means over rows of several windows, in nats per token.
struct Price {
  int64_t tokens = 0;                     // rows that the means are over; 0: all else is 0 too
  double nll = 0;                         // perplexity = exp(nll)
  double delta_nll = 0;                   // minus the reference's over the same tokens
  std::optional<double> delta_nll_error;  // standard error over windows; none for a single window
  double divergence = 0;
};

// Over the rows from `first` on that have a token to predict. Both spans hold the same windows.
Price Compare(std::span<const WindowScore> reference, std::span<const WindowScore> windows,
              int first);

}  // namespace keyline
