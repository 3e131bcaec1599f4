#include "runtime/pipeline/hidden_states.h"

#include <glog/logging.h>

#include <algorithm>
#include <bit>

namespace keyline {
namespace {

using pipeline::PlanChunk;

bool AsksFor(const PlanChunk& chunk, int layer) {
  return chunk.output() == pipeline::OUTPUT_HIDDEN && chunk.hidden_layer() == layer;
}

// Rows [first, first + count) as float32, row major.
std::vector<float> ReadRows(Stream& s, TensorView hidden, int first, int count) {
  const TensorView rows = hidden.Rows(first, count);
  std::vector<float> values(rows.elements());
  if (rows.dtype == DType::kF32) {
    s.CopyAsync(values.data(), rows.data, rows.bytes());
    s.Synchronize();
    return values;
  }
  CHECK(rows.dtype == DType::kBF16) << "activations are float32 or bfloat16";
  std::vector<uint16_t> halves(values.size());
  s.CopyAsync(halves.data(), rows.data, rows.bytes());
  s.Synchronize();
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = std::bit_cast<float>(uint32_t{halves[i]} << 16);
  }
  return values;
}

}  // namespace

bool HiddenStates::Asks(const pipeline::PlanBatch& batch) {
  return std::any_of(batch.chunks().begin(), batch.chunks().end(), [](const PlanChunk& chunk) {
    return chunk.output() == pipeline::OUTPUT_HIDDEN;
  });
}

bool HiddenStates::Asks(const pipeline::PlanBatch& batch, int layer) {
  for (const PlanChunk& chunk : batch.chunks()) {
    if (AsksFor(chunk, layer)) return true;
  }
  return false;
}

void HiddenStates::Read(Stream& s, const pipeline::PlanBatch& batch, int layer, TensorView hidden,
                        pipeline::StepResult& result) {
  int first = 0;
  for (const PlanChunk& chunk : batch.chunks()) {
    const int begin = first;
    const int tokens = chunk.token_ids_size();
    first += tokens;
    if (!AsksFor(chunk, layer)) continue;
    if (chunk.hidden_pooling() == pipeline::HIDDEN_LAST) {
      if (!chunk.hidden_ends()) continue;
      const std::vector<float> last = ReadRows(s, hidden, begin + tokens - 1, 1);
      pipeline::HiddenResult& out = *result.add_hidden();
      out.set_lane(chunk.lane());
      out.mutable_values()->Add(last.begin(), last.end());
      continue;
    }
    Sum& sum = sums_[chunk.lane()];
    // A lane whose former sequence was given up may have left a sum behind.
    if (chunk.first_position() == 0) sum = {.tokens = 0, .values = {}};
    sum.values.resize(hidden.cols(), 0.0);
    const std::vector<float> rows = ReadRows(s, hidden, begin, tokens);
    for (size_t i = 0; i < rows.size(); ++i) sum.values[i % sum.values.size()] += rows[i];
    sum.tokens += tokens;
    if (!chunk.hidden_ends()) continue;
    pipeline::HiddenResult& out = *result.add_hidden();
    out.set_lane(chunk.lane());
    for (double value : sum.values) {
      out.add_values(static_cast<float>(value / static_cast<double>(sum.tokens)));
    }
    sums_.erase(chunk.lane());
  }
}

}  // namespace keyline
