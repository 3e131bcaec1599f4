#include <algorithm>
#include <vector>

#include "kernels/cpu/cache/cache_ops_cpu.h"
#include "kernels/cpu/cpu_device.h"

namespace keyline::cpu {
namespace {

constexpr int64_t kSerialSlots = 32768;  // below, a loop is not worth its barrier

// Sum of a[j] * b[j] in a fixed order that the compiler can vectorise.
float Dot(const float* a, const float* b, int n) {
  constexpr int kLanes = 16;
  float lane[kLanes] = {};
  int j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) lane[k] += a[j + k] * b[j + k];
  }
  for (; j < n; ++j) lane[j % kLanes] += a[j] * b[j];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

}  // namespace

void AddScores(Stream& s, const SlotTable& table, const float* mass, const Batch& batch, int policy,
               const ScoreRule& rule) {
  const int heads = table.kv_heads;
  const auto takes = [&](const Chunk& chunk) {
    return chunk.takes_mass && table.rules[chunk.lane].policy == policy;
  };
  const auto mass_of = [&](int c, int head) {
    return mass + (int64_t{c} * heads + head) * table.slots;
  };
  int64_t slots = 0;
  for (int c = 0; c < batch.chunks; ++c) {
    if (takes(batch.chunk[c])) slots += int64_t{heads} * table.slots;
  }
  if (slots == 0) return;
  const auto add = [&](int c, int head) {
    const Chunk& chunk = batch.chunk[c];
    if (!takes(chunk)) return;
    const int used = std::min(table.rules[chunk.lane].length, chunk.first_position + chunk.tokens);
    const int64_t row = (int64_t{chunk.lane} * heads + head) * table.slots;
    float* score = table.scores + row;
    if (rule.shared) {
      for (int other = 0; other < batch.chunks; ++other) {
        if (!takes(batch.chunk[other])) continue;
        const float* a = mass_of(other, head);
        for (int j = 0; j < used; ++j) score[j] += a[j];
      }
    } else if (rule.value_norms) {
      const float* a = mass_of(c, head);
      const float* norm = table.value_norms + row;
      const float sum = Dot(norm, a, used);
      if (sum > 0) {  // else all values are zero and no slot is worth more than another
        const float n = static_cast<float>(chunk.tokens);
        for (int j = 0; j < used; ++j) score[j] += n * (norm[j] * a[j]) / sum;
      }
    } else {
      const float* a = mass_of(c, head);
      for (int j = 0; j < used; ++j) score[j] += a[j];
    }
  };
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      add(static_cast<int>(i / heads), static_cast<int>(i % heads));
    }
  };
  const int64_t tasks = int64_t{batch.chunks} * heads;
  if (slots <= kSerialSlots) {
    body(0, tasks);
  } else {
    AsCpu(s).pool().ParallelFor(tasks, body);
  }
}

}  // namespace keyline::cpu
