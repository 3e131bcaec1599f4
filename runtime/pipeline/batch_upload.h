// BatchUpload: one or several PlanBatches become Batches in device memory, with one copy out of
// pinned memory, so that the device fetches it when it gets there. Besides the batches themselves
// it carries which rows the head works on, and where their tokens go.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/device/host_block.h"
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

  // Of a batch of one token a chunk: passes with equal keys enqueue the same operations.
  uint64_t decode_key() const {
    const auto slots =
        static_cast<uint64_t>(std::bit_width(static_cast<uint64_t>(batch.max_slots)));
    return uint64_t(batch.chunks) << 40 | slots << 32 | uint64_t(sampled.count);
  }
};

class BatchUpload {
 public:
  // More than decode steps can be under way, so that pieces of prompts seldom wait for each other.
  static constexpr int kImages = 4;

  // Up to `max_batches` batches with `max_tokens` tokens in all, for caches of at most
  // `longest_cache` slots a lane.
  static absl::StatusOr<BatchUpload> Make(Device& device, int lanes, int max_tokens,
                                          int max_batches = 1,
                                          int longest_cache = std::numeric_limits<int>::max());
  static size_t BytesFor(int lanes, int max_tokens, int max_batches);

  // REQUIRES: the batches fit lanes, max_tokens and max_batches, and a lane occurs once in each
  // (rank 0's scheduler sees to that: CHECK). `first_row`: where the sampler puts tokens. `drawn`:
  // what the caller records behind sampled rows, if there are any, before the next Set; null:
  // nothing. Waits for the copy of kImages Sets before.
  void Set(Stream& s, std::span<const pipeline::PlanBatch* const> plans, int32_t first_row = 0,
           Event* drawn = nullptr);
  void Set(Stream& s, const pipeline::PlanBatch& plan) {
    const pipeline::PlanBatch* const plans[] = {&plan};
    Set(s, plans);
  }
  // Of the last Set, in its order.
  std::span<const UploadedBatch> batches() const { return batches_; }
  const Batch& batch() const { return batches_.front().batch; }

 private:
  // What is copied.
  struct Image {
    HostBlock ints;
    std::unique_ptr<Event> copied;
    Event* free = nullptr;  // when it may be written again: `copied`, or one that comes later
  };
  UploadedBatch Add(const pipeline::PlanBatch& plan, int32_t* image, size_t& ints);

  int lanes_ = 0;
  int max_tokens_ = 0;
  int max_batches_ = 0;
  int64_t longest_cache_ = 0;
  Tensor memory_;
  std::array<Image, kImages> images_;
  size_t next_image_ = 0;
  // Per lane, the batch that it was last in, by the number of batches so far.
  std::vector<uint64_t> lane_batch_;
  uint64_t batches_so_far_ = 0;
  std::vector<UploadedBatch> batches_;
};

}  // namespace keyline
