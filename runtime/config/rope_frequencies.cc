#include "runtime/config/rope_frequencies.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace keyline {
namespace {

// Long waves are stretched by `factor`, short ones kept, those between blended.
double Llama3(const RopeConfig& rope, double frequency) {
  const auto trained = static_cast<double>(rope.original_max_positions);
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < trained / rope.high_freq_factor) return frequency;
  if (wavelength > trained / rope.low_freq_factor) return frequency / rope.factor;
  const double smooth = (trained / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

// The pair, as a real number, that turns `rotations` times within the positions trained on.
double PairOf(const RopeConfig& rope, double rotations, int rotary_dim) {
  const auto trained = static_cast<double>(rope.original_max_positions);
  return rotary_dim * std::log(trained / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

// Pairs up to `low` keep their frequency, those from `high` on are stretched, a ramp between.
double Yarn(const RopeConfig& rope, double frequency, int pair, int rotary_dim) {
  const double low = std::max(std::floor(PairOf(rope, rope.beta_fast, rotary_dim)), 0.0);
  double high = std::min(std::ceil(PairOf(rope, rope.beta_slow, rotary_dim)), rotary_dim - 1.0);
  if (low == high) high += 0.001;
  const double stretched = std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return frequency / rope.factor * stretched + frequency * (1 - stretched);
}

}  // namespace

std::vector<double> InverseFrequencies(const RopeConfig& rope, int rotary_dim) {
  CHECK(rotary_dim > 0 && rotary_dim % 2 == 0) << rotary_dim;
  std::vector<double> frequencies(rotary_dim / 2);
  CHECK(rope.frequency_divisors.empty() || rope.frequency_divisors.size() == frequencies.size())
      << rope.frequency_divisors.size() << " divisors of " << frequencies.size() << " frequencies";
  for (int i = 0; i < rotary_dim / 2; ++i) {
    double& frequency = frequencies[i];
    frequency = std::pow(rope.theta, -2.0 * i / rotary_dim);
    switch (rope.kind) {
      case RopeConfig::Kind::kDefault:
        break;
      case RopeConfig::Kind::kLinear:
        frequency /= rope.factor;
        break;
      case RopeConfig::Kind::kLlama3:
        frequency = Llama3(rope, frequency);
        break;
      case RopeConfig::Kind::kYarn:
        frequency = Yarn(rope, frequency, i, rotary_dim);
        break;
    }
    if (!rope.frequency_divisors.empty()) frequency /= rope.frequency_divisors[i];
  }
  return frequencies;
}

double RopeAttentionFactor(const RopeConfig& rope) {
  if (rope.kind != RopeConfig::Kind::kYarn) return 1.0;
  if (rope.attention_factor > 0) return rope.attention_factor;
  return rope.factor <= 1 ? 1.0 : 0.1 * std::log(rope.factor) + 1.0;
}

}  // namespace keyline
