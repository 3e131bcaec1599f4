#include "tests/reference/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace keyline::reference {

std::vector<int> Ranking(const std::vector<float>& logits) {
  std::vector<int> ranking;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isfinite(logits[i])) ranking.push_back(static_cast<int>(i));
  }
  std::stable_sort(ranking.begin(), ranking.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  return ranking;
}

std::vector<double> LogSoftmax(const std::vector<float>& logits) {
  std::vector<double> out(logits.size(), -std::numeric_limits<double>::infinity());
  const std::vector<int> ranking = Ranking(logits);
  if (ranking.empty()) return out;
  const double largest = logits[ranking[0]];
  double sum = 0;
  for (int i : ranking) sum += std::exp(logits[i] - largest);
  for (int i : ranking) out[i] = logits[i] - largest - std::log(sum);
  return out;
}

std::vector<double> SamplingDistribution(const std::vector<float>& logits,
                                         const SamplingParams& params) {
  std::vector<int> kept = Ranking(logits);
  if (params.top_k > 0 && kept.size() > static_cast<size_t>(params.top_k)) {
    kept.resize(params.top_k);
  }
  std::vector<double> p(logits.size(), 0.0);
  const auto normalise = [&] {
    double sum = 0;
    for (int i : kept) sum += p[i];
    for (int i : kept) p[i] /= sum;
  };
  for (int i : kept) {
    p[i] = std::exp((static_cast<double>(logits[i]) - logits[kept[0]]) / params.temperature);
  }
  normalise();
  if (params.top_p < 1) {  // as it is defined: ascending, drop while the sum is <= 1 - p
    double cumulative = 0;
    while (kept.size() > 1) {
      cumulative += p[kept.back()];
      if (cumulative > 1 - static_cast<double>(params.top_p)) break;
      p[kept.back()] = 0;
      kept.pop_back();
    }
    normalise();
  }
  while (p[kept.back()] < static_cast<double>(params.min_p) * p[kept[0]]) {
    p[kept.back()] = 0;
    kept.pop_back();
  }
  normalise();
  return p;
}

}  // namespace keyline::reference
