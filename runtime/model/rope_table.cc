#include "runtime/model/rope_table.h"

#include <cmath>
#include <vector>

#include "kernels/device/status_macros.h"
#include "runtime/config/rope_frequencies.h"

namespace keyline {

size_t RopeTable::BytesFor(int rotary_dim, int positions) {
  return static_cast<size_t>(positions) * rotary_dim * sizeof(float);
}

absl::StatusOr<RopeTable> RopeTable::Make(Device& device, Stream& stream, const RopeConfig& config,
                                          int rotary_dim, int positions) {
  const std::vector<double> frequencies = InverseFrequencies(config, rotary_dim);
  const double attention_factor = RopeAttentionFactor(config);
  const int pairs = rotary_dim / 2;
  RopeTable table;
  ASSIGN_OR_RETURN(table.memory_, Tensor::Allocate(device, DType::kF32, {positions, pairs, 2}));
  // A block of positions at a time, so that the host never holds a second table.
  constexpr int kPositionsAtOnce = 4096;
  std::vector<float> rows(size_t{kPositionsAtOnce} * rotary_dim);
  for (int first = 0; first < positions; first += kPositionsAtOnce) {
    const int count = std::min(kPositionsAtOnce, positions - first);
    float* out = rows.data();
    for (int p = first; p < first + count; ++p) {
      for (int i = 0; i < pairs; ++i) {
        const double angle = p * frequencies[i];
        *out++ = static_cast<float>(std::cos(angle) * attention_factor);
        *out++ = static_cast<float>(std::sin(angle) * attention_factor);
      }
    }
    stream.CopyAsync(table.memory_.view().row<float>(first), rows.data(),
                     size_t{static_cast<size_t>(count)} * rotary_dim * sizeof(float));
    stream.Synchronize();
  }
  table.rope_ = {
      .table = table.memory_.view().as<float>(), .rotary_dim = rotary_dim, .positions = positions};
  return table;
}

}  // namespace keyline
