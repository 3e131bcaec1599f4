// BatchUpload: a PlanBatch becomes a Batch in device memory, with one copy. Besides the batch
// itself it carries which rows the head works on.
#pragma once

#include <cstddef>
#include <cstdint>
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

class BatchUpload {
 public:
  static absl::StatusOr<BatchUpload> Make(Device& device, int lanes, int max_tokens);
  static size_t BytesFor(int lanes, int max_tokens);

  // REQUIRES: the batch fits lanes and max_tokens, and a lane occurs once (rank 0's scheduler sees
  // to that: CHECK). The results are valid until the next Set.
  void Set(Stream& s, const pipeline::PlanBatch& plan);

  const Batch& batch() const { return batch_; }
  const HeadRows& sampled() const { return sampled_; }  // one row for each OUTPUT_SAMPLE chunk
  const HeadRows& scored() const { return scored_; }    // all rows of scored chunks

 private:
  int lanes_ = 0;
  int max_tokens_ = 0;
  Tensor memory_;
  std::vector<int32_t> image_;
  Batch batch_;
  HeadRows sampled_;
  HeadRows scored_;
};

}  // namespace keyline
