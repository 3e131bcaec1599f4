#include "tests/reference/kv_lane_reference.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

namespace keyline::reference {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// To `bits` bits of mantissa (the leading one included), halves to even; multiples of `smallest`
// below the normal range.
double RoundTo(double x, int bits, double smallest) {
  if (x == 0) return 0;
  int exponent = 0;
  std::frexp(x, &exponent);  // x = f * 2^exponent, 0.5 <= |f| < 1
  const double unit = std::max(std::ldexp(1.0, exponent - bits), smallest);
  return std::nearbyint(x / unit) * unit;
}

void ReadBackBlock(const float* x, int n, int levels, double* out) {
  float low = x[0], high = x[0];
  for (int i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  float scale = (high - low) / static_cast<float>(levels);
  if (scale < std::ldexp(1.0f, -23)) scale = std::ldexp(1.0f, -23);
  const float zero = -std::nearbyint(low / scale);
  for (int i = 0; i < n; ++i) {
    float q = std::nearbyint(x[i] / scale) + zero;
    if (q < 0) q = 0;
    if (q > static_cast<float>(levels)) q = static_cast<float>(levels);
    out[i] = (q - zero) * scale;
  }
}

bool StartsWith(const std::string& s, const char* prefix) { return s.rfind(prefix, 0) == 0; }
bool EndsWith(const std::string& s, const std::string& suffix) {
  return s.size() >= suffix.size() && s.substr(s.size() - suffix.size()) == suffix;
}

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (double e : x) sum += e * e;
  return std::sqrt(sum);
}

}  // namespace

std::vector<double> ReadBack(const std::vector<float>& values, Stored stored) {
  const int n = static_cast<int>(values.size());
  std::vector<double> out(values.begin(), values.end());
  switch (stored) {
    case Stored::kF32:
      break;
    case Stored::kBF16:
      for (double& x : out) x = RoundTo(x, 8, 0);
      break;
    case Stored::kF16:
      for (double& x : out) x = RoundTo(x, 11, std::ldexp(1.0, -24));
      break;
    case Stored::kInt8:
      ReadBackBlock(values.data(), n, 255, out.data());
      break;
    case Stored::kInt4:
      for (int i = 0; i < n; i += 32) {
        ReadBackBlock(values.data() + i, std::min(32, n - i), 15, out.data() + i);
      }
      break;
  }
  return out;
}

KvLaneReference::KvLaneReference(const KvLaneSpec& spec)
    : spec_(spec),
      ring_next_(spec.length - spec.grace),
      slot_pos_(spec.kv_heads, std::vector<int>(spec.length, -1)),
      k_(spec.kv_heads,
         std::vector<std::vector<double>>(spec.length, std::vector<double>(spec.head_dim, 0.0))),
      v_(k_),
      scores_(spec.kv_heads, std::vector<double>(spec.length, 0.0)),
      norms_(scores_),
      errors_(scores_),
      mass_(scores_) {}

std::vector<double> KvLaneReference::Step(int n, const std::vector<float>& q,
                                          const std::vector<float>& k,
                                          const std::vector<float>& v) {
  Write(n, Place(n), k, v);
  std::vector<double> out = Attend(n, q);
  Score(n, mass_);
  return out;
}

std::vector<double> KvLaneReference::Normalised(int head) const {
  std::vector<double> scores = scores_[head];
  if (!spec_.normalize_scores) return scores;
  for (int j = 0; j < spec_.length; ++j) {
    scores[j] /= tokens_ - std::max(slot_pos_[head][j], first_chunk_ - 1);
  }
  return scores;
}

std::vector<double> KvLaneReference::Rank(int head) const {
  std::vector<double> rank = Normalised(head);
  if (!StartsWith(spec_.policy, "qh2o")) return rank;
  const int end = spec_.length - spec_.grace;
  double low_s = HUGE_VAL, high_s = -HUGE_VAL, low_e = HUGE_VAL, high_e = -HUGE_VAL;
  for (int h = 0; h < spec_.kv_heads; ++h) {
    const std::vector<double> scores = Normalised(h);
    for (int j = 0; j < end; ++j) {
      low_s = std::min(low_s, scores[j]);
      high_s = std::max(high_s, scores[j]);
      low_e = std::min(low_e, errors_[h][j]);
      high_e = std::max(high_e, errors_[h][j]);
    }
  }
  const double c = 0.5;
  for (int j = 0; j < end; ++j) {
    const double s = high_s > low_s ? (rank[j] - low_s) / (high_s - low_s) : 0;
    const double e = high_e > low_e ? (errors_[head][j] - low_e) / (high_e - low_e) : 0;
    rank[j] = c * s + (c - 1) / 2 * e + (1 - c);
  }
  return rank;
}

std::vector<std::vector<int>> KvLaneReference::Place(int n) {
  const int length = spec_.length;
  std::vector<std::vector<int>> slots(spec_.kv_heads);
  evicted_.assign(spec_.kv_heads, {});
  const bool recent = EndsWith(spec_.policy, "last_recent");
  if (recent) {
    std::vector<int> ring;  // slots that are not protected
    for (int j = 0; j < length; ++j) {
      if (j >= spec_.sinks && !(j >= spec_.protect_begin && j < spec_.protect_end)) {
        ring.push_back(j);
      }
    }
    for (int h = 0; h < spec_.kv_heads; ++h) {
      for (int p = tokens_; p < tokens_ + n; ++p) {
        slots[h].push_back(p < length ? p : ring[(p - length) % ring.size()]);
      }
    }
    return slots;
  }
  if (tokens_ + n <= length) {
    for (int h = 0; h < spec_.kv_heads; ++h) {
      for (int i = 0; i < n; ++i) slots[h].push_back(tokens_ + i);
    }
    return slots;
  }
  assert(StartsWith(spec_.policy, "h2o") || StartsWith(spec_.policy, "qh2o"));
  const int grace = spec_.grace;
  assert(tokens_ >= length && n <= length - grace - spec_.sinks);
  const int n2 = std::min(n, grace);
  // Heads decide and move in order: a ranking that looks at other heads sees what has moved.
  for (int h = 0; h < spec_.kv_heads; ++h) {
    std::vector<int>& evicted = evicted_[h];
    if (!scored_) {
      const int k = std::max(
          std::min(static_cast<int>(spec_.keep_initial_fraction * length), length - grace - n),
          spec_.sinks);
      for (int i = 0; i < n; ++i) evicted.push_back(k + i);
    } else {
      const std::vector<double> rank = Rank(h);
      std::vector<int> order;
      for (int j = spec_.sinks; j < length - grace; ++j) order.push_back(j);
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return rank[a] < rank[b]; });
      evicted.assign(order.begin(), order.begin() + n);
    }
    std::vector<int> ring;
    ring.reserve(n2);
    for (int i = 0; i < n2; ++i) {
      ring.push_back(length - grace + (ring_next_ - (length - grace) + i) % grace);
    }
    for (int i = 0; i < n2; ++i) {
      const int from = ring[i], to = evicted[i];
      k_[h][to] = k_[h][from];
      v_[h][to] = v_[h][from];
      slot_pos_[h][to] = slot_pos_[h][from];
      scores_[h][to] = scores_[h][from];
      norms_[h][to] = norms_[h][from];
      errors_[h][to] = errors_[h][from];
    }
    slots[h].assign(evicted.begin() + n2, evicted.end());
    slots[h].insert(slots[h].end(), ring.begin(), ring.end());
  }
  if (grace > 0 && n <= grace) {
    ring_next_ = length - grace + (ring_next_ - (length - grace) + n) % grace;
  }
  return slots;
}

void KvLaneReference::Write(int n, const std::vector<std::vector<int>>& slots,
                            const std::vector<float>& k, const std::vector<float>& v) {
  for (int h = 0; h < spec_.kv_heads; ++h) {
    for (int i = 0; i < n; ++i) {
      const int slot = slots[h][i];
      const int64_t at = (int64_t{i} * spec_.kv_heads + h) * spec_.head_dim;
      const std::vector<float> key(k.begin() + at, k.begin() + at + spec_.head_dim);
      const std::vector<float> value(v.begin() + at, v.begin() + at + spec_.head_dim);
      k_[h][slot] = ReadBack(key, spec_.k);
      v_[h][slot] = ReadBack(value, spec_.v);
      slot_pos_[h][slot] = tokens_ + i;
      scores_[h][slot] = 0;
      norms_[h][slot] = Norm({value.begin(), value.end()});
      std::vector<double> k_lost(key.begin(), key.end()), v_lost(value.begin(), value.end());
      for (int d = 0; d < spec_.head_dim; ++d) {
        k_lost[d] -= k_[h][slot][d];
        v_lost[d] -= v_[h][slot][d];
      }
      errors_[h][slot] = Norm(k_lost) + Norm(v_lost);
    }
  }
}

// One thread's own numbers: to watch each of them took most of the tests' time with
// ThreadSanitizer.
__attribute__((no_sanitize("thread"))) std::vector<double> KvLaneReference::Attend(
    int n, const std::vector<float>& q) {
  const int group = spec_.heads / spec_.kv_heads;
  std::vector<double> out(q.size(), 0.0);
  for (auto& row : mass_) std::fill(row.begin(), row.end(), 0.0);
  for (int i = 0; i < n; ++i) {
    const int p = tokens_ + i;
    for (int head = 0; head < spec_.heads; ++head) {
      const int h = head / group;
      const float* query = q.data() + (int64_t{i} * spec_.heads + head) * spec_.head_dim;
      std::vector<double> logit(spec_.length, kMinusInfinity);
      double largest = kMinusInfinity;
      for (int j = 0; j < spec_.length; ++j) {
        const int pos = slot_pos_[h][j];
        if (pos < 0 || pos > p || (spec_.window > 0 && pos <= p - spec_.window)) continue;
        const double* key = k_[h][j].data();
        double dot = 0;
        for (int d = 0; d < spec_.head_dim; ++d) dot += query[d] * key[d];
        logit[j] = dot * spec_.scale;
        if (spec_.softcap > 0) logit[j] = spec_.softcap * std::tanh(logit[j] / spec_.softcap);
        largest = std::max(largest, logit[j]);
      }
      if (largest == kMinusInfinity) continue;
      double sum = 0;
      for (double& x : logit) sum += x = x == kMinusInfinity ? 0 : std::exp(x - largest);
      double* row = out.data() + (int64_t{i} * spec_.heads + head) * spec_.head_dim;
      for (int j = 0; j < spec_.length; ++j) {
        if (logit[j] == 0) continue;
        const double weight = logit[j] / sum;
        const double* value = v_[h][j].data();
        mass_[h][j] += weight / group;
        for (int d = 0; d < spec_.head_dim; ++d) row[d] += weight * value[d];
      }
    }
  }
  return out;
}

void KvLaneReference::Score(int n, const PerSlot& mass) {
  if (tokens_ == 0) {
    first_chunk_ = n;
  } else if (StartsWith(spec_.policy, "h2o") || StartsWith(spec_.policy, "qh2o")) {
    for (int h = 0; h < spec_.kv_heads; ++h) {
      double weighted = 0;
      for (int j = 0; j < spec_.length; ++j) weighted += norms_[h][j] * mass[h][j];
      for (int j = 0; j < spec_.length; ++j) {
        scores_[h][j] += EndsWith(spec_.policy, "_vnorm")
                             ? (weighted > 0 ? n * norms_[h][j] * mass[h][j] / weighted : 0)
                             : mass[h][j];
      }
    }
    scored_ = true;
  }
  tokens_ += n;
}

std::vector<std::vector<int>> KvLaneReference::Kept() const {
  std::vector<std::vector<int>> kept(slot_pos_.size());
  for (size_t h = 0; h < slot_pos_.size(); ++h) {
    for (int pos : slot_pos_[h]) {
      if (pos >= 0) kept[h].push_back(pos);
    }
    std::sort(kept[h].begin(), kept[h].end());
  }
  return kept;
}

}  // namespace keyline::reference
