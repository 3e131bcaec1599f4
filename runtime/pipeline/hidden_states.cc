#include "runtime/pipeline/hidden_states.h"

#include <algorithm>
#include <cstddef>

#include "runtime/files/gguf/gguf_blocks.h"

namespace keyline {
namespace {

using pipeline::PlanChunk;

bool AsksFor(const PlanChunk& chunk, int layer) {
  return chunk.output() == pipeline::OUTPUT_HIDDEN && chunk.hidden_layer() == layer;
}

// Rows [first, first + count) as float32, row major.
std::vector<float> ReadRows(Stream& s, TensorView hidden, int first, int count) {
  const TensorView rows = hidden.Rows(first, count);
  std::vector<std::byte> bytes(rows.bytes());
  s.CopyAsync(bytes.data(), rows.data, bytes.size());
  s.Synchronize();
  std::vector<float> values(rows.elements());
  DequantizeRow(rows.dtype, bytes.data(), rows.elements(), values.data());
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
