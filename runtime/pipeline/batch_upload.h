// BatchUpload: one or several PlanBatches become Batches in device memory, with one copy. Besides
// the batches themselves it carries which rows the head works on, and where their tokens go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/batch.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

// Rows of the final hidden states that become logits. Pointers are device memory, [count].
struct HeadRows {
  int count = 0;
  const int32_t* row = nullptr;  // token of the packed batch
  const int32_t* lane = nullptr;
  const int32_t* position = nullptr;  // of the token that the row decides
  const int32_t* target = nullptr;    // -1: none
};

struct UploadedBatch {
  Batch batch;
  HeadRows sampled;                    // one row for each OUTPUT_SAMPLE chunk
  HeadRows scored;                     // all rows of scored chunks
  const int32_t* first_row = nullptr;  // device, [1]: for Sampler::Sample, as it was given to Set
};

class BatchUpload {
 public:
  // Up to `max_batches` batches with `max_tokens` tokens in all.
  static absl::StatusOr<BatchUpload> Make(Device& device, int lanes, int max_tokens,
                                          int max_batches = 1);
  static size_t BytesFor(int lanes, int max_tokens, int max_batches);

  // REQUIRES: the batches fit lanes, max_tokens and max_batches, and a lane occurs once in each
  // (rank 0's scheduler sees to that: CHECK). `first_row`: where the sampler puts tokens.
  void Set(Stream& s, std::span<const pipeline::PlanBatch* const> plans, int32_t first_row = 0);
  void Set(Stream& s, const pipeline::PlanBatch& plan) {
    const pipeline::PlanBatch* const plans[] = {&plan};
    Set(s, plans);
  }
  // Of the last Set, in its order.
  std::span<const UploadedBatch> batches() const { return batches_; }
  const Batch& batch() const { return batches_.front().batch; }

 private:
  UploadedBatch Add(const pipeline::PlanBatch& plan);

  int lanes_ = 0;
  int max_tokens_ = 0;
  int max_batches_ = 0;
  Tensor memory_;
  std::vector<int32_t> image_;
  std::vector<UploadedBatch> batches_;
};

}  // namespace keyline
