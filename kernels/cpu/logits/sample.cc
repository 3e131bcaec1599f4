// One token for each row of logits: the largest, or one drawn from the filtered distribution.
//
// The filters, in order: top_k keeps the k largest logits; the temperature makes probabilities of
// them; top_p drops, ascending, tokens whose cumulative probability is <= 1 - p, but never the
// largest; min_p drops tokens below min_p times the largest. The draw walks the kept tokens in the
// order of their ids. Among equal logits the lower id ranks higher.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/logits/log_probs.h"
#include "kernels/ops/philox.h"

namespace keyline::cpu {
namespace {

// Number of leading candidates that top_p keeps. Sorts by `before` as many as it takes, no more.
template <class Before>
size_t KeepTopP(std::vector<int32_t>& candidates, const float* weights, double total, float top_p,
                const Before& before) {
  size_t sorted = 0;
  double larger = 0;  // probability of all that rank higher
  for (size_t batch = 64; sorted < candidates.size(); batch *= 4) {
    const size_t end = std::min(candidates.size(), sorted + batch);
    std::partial_sort(candidates.begin() + sorted, candidates.begin() + end, candidates.end(),
                      before);
    for (; sorted < end; ++sorted) {
      if (sorted > 0 && larger >= static_cast<double>(top_p)) return sorted;
      larger += static_cast<double>(weights[candidates[sorted]]) / total;
    }
  }
  return candidates.size();
}

// REQUIRES: params.temperature > 0 and a finite logit. `weights`: [vocabulary], working memory.
int32_t Draw(const KernelSet& kernels, const float* logits, int64_t vocabulary, float max,
             const SamplingParams& params, int32_t position, float* weights) {
  const auto before = [logits](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  kernels.exp_row(weights, logits, vocabulary, max, 1.0f / params.temperature);
  std::vector<int32_t> candidates;
  candidates.reserve(vocabulary);
  for (int32_t token = 0; token < vocabulary; ++token) {
    if (std::isfinite(logits[token])) candidates.push_back(token);
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + params.top_k - 1, candidates.end(),
                     before);
    candidates.resize(params.top_k);
  }
  if (params.top_p < 1) {
    const double total = std::accumulate(
        candidates.begin(), candidates.end(), 0.0,
        [weights](double sum, int32_t token) { return sum + static_cast<double>(weights[token]); });
    candidates.resize(KeepTopP(candidates, weights, total, params.top_p, before));
  }
  if (params.min_p > 0) {  // the largest has weight 1
    std::erase_if(candidates, [&](int32_t token) { return weights[token] < params.min_p; });
  }
  std::sort(candidates.begin(), candidates.end());
  double total = 0;
  for (int32_t token : candidates) total += static_cast<double>(weights[token]);
  double left = total * SamplingDraw(params.seed, params.sequence, static_cast<uint32_t>(position));
  for (int32_t token : candidates) {
    left -= static_cast<double>(weights[token]);
    if (left < 0) return token;
  }
  // Rounding used the draw up: the last token that can be drawn at all.
  return *std::find_if(candidates.rbegin(), candidates.rend(),
                       [weights](int32_t token) { return weights[token] > 0; });
}

SampledToken SampleRow(const KernelSet& kernels, const float* logits, int64_t vocabulary,
                       const SamplingParams& params, int32_t position, float* weights) {
  SampledToken result;
  const LogitSums sums = SumLogits(kernels, logits, vocabulary);
  result.non_finite = static_cast<int32_t>(sums.non_finite);
  if (!sums.any_finite) return result;
  if (params.temperature == 0) {
    result.token = static_cast<int32_t>(std::find(logits, logits + vocabulary, sums.max) - logits);
  } else {
    result.token = Draw(kernels, logits, vocabulary, sums.max, params, position, weights);
  }
  result.logprob = sums.LogProb(logits[result.token]);
  return result;
}

}  // namespace

size_t SampleScratch(const PassShape& shape) {
  return BytesOf(DType::kF32, int64_t{shape.logit_rows} * shape.vocab);
}

void Sample(Stream& s, SampledToken* out, const int32_t* first, TensorView logits,
            const int32_t* lanes, const int32_t* positions, const SamplingParams* params,
            int32_t* drawn) {
  CpuStream& cpu = AsCpu(s);
  auto* weights =
      static_cast<float*>(cpu.Scratch(BytesOf(DType::kF32, logits.rows() * logits.cols())));
  SampledToken* const rows = out + *first;
  cpu.pool().ParallelFor(logits.rows(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rows[i] = SampleRow(cpu.kernels(), logits.row<float>(i), logits.cols(), params[lanes[i]],
                          positions[i], weights + i * logits.cols());
      if (drawn != nullptr) drawn[lanes[i]] = std::max(rows[i].token, 0);
    }
  });
}

}  // namespace keyline::cpu
