// Log-probabilities of given tokens and of the likeliest tokens.
#include "kernels/cpu/logits/log_probs.h"

#include <glog/logging.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"

namespace keyline::cpu {

LogitSums SumLogits(const KernelSet& kernels, const float* logits, int64_t vocabulary) {
  LogitSums sums;
  sums.max = kernels.max_finite(logits, vocabulary, &sums.non_finite);
  sums.any_finite = sums.non_finite < vocabulary;
  if (sums.any_finite) {
    sums.log_sum = sums.max + std::log(kernels.sum_exp(logits, vocabulary, sums.max, 1.0f));
  }
  return sums;
}

void TokenLogProbs(Stream& s, float* out, TensorView logits, const int32_t* targets) {
  CpuStream& cpu = AsCpu(s);
  cpu.pool().ParallelFor(logits.rows(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = 0;
      if (targets[i] < 0) continue;
      CHECK_LT(targets[i], logits.cols());
      const float* row = logits.row<float>(i);
      out[i] = SumLogits(cpu.kernels(), row, logits.cols()).LogProb(row[targets[i]]);
    }
  });
}

void TopLogProbs(Stream& s, int32_t* tokens, float* logprobs, int count, TensorView logits) {
  CpuStream& cpu = AsCpu(s);
  struct Entry {
    float logit;
    int32_t token;
  };
  const auto before = [](const Entry& a, const Entry& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  cpu.pool().ParallelFor(logits.rows(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = logits.row<float>(i);
      const LogitSums sums = SumLogits(cpu.kernels(), row, logits.cols());
      // The best so far in order; most tokens fail the first comparison. Logits that are not finite
      // rank last.
      std::array<Entry, kMaxTopLogProbs + 1> best;
      int kept = 0;
      for (int32_t token = 0; token < logits.cols(); ++token) {
        const Entry entry = {std::isfinite(row[token]) ? row[token] : -HUGE_VALF, token};
        if (kept == count && !before(entry, best[kept - 1])) continue;
        int at = kept;
        for (; at > 0 && before(entry, best[at - 1]); --at) best[at] = best[at - 1];
        best[at] = entry;
        kept = std::min(kept + 1, count);
      }
      for (int j = 0; j < count; ++j) {
        tokens[i * count + j] = best[j].token;
        logprobs[i * count + j] = sums.LogProb(best[j].logit);
      }
    }
  });
}

}  // namespace keyline::cpu
