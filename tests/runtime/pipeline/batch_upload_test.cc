// What a batch's upload tells those who size and record launches.
#include "runtime/pipeline/batch_upload.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kernels/cpu/open_cpu.h"

namespace keyline {
namespace {

// A step of one token for each lane, of which as many positions as `before` says have run.
pipeline::PlanBatch StepOf(const std::vector<int>& before) {
  pipeline::PlanBatch plan;
  for (int lane = 0; lane < static_cast<int>(before.size()); ++lane) {
    pipeline::PlanChunk& chunk = *plan.add_chunks();
    chunk.set_lane(lane);
    chunk.set_first_position(before[lane]);
    chunk.add_token_ids(7);
    chunk.set_chunk_tokens(1);
    chunk.set_output(pipeline::OUTPUT_SAMPLE);
  }
  return plan;
}

class BatchUploadTest : public testing::Test {
 protected:
  UploadedBatch Upload(const std::vector<int>& before) {
    upload_.Set(*stream_, StepOf(before));
    return upload_.batches().front();
  }
  void Restart(int longest_cache) {
    upload_ = *BatchUpload::Make(*device_, /*lanes=*/8, /*max_tokens=*/8, /*max_batches=*/1,
                                 longest_cache);
  }

 private:
  std::unique_ptr<Device> device_ = *OpenCpuDevice(/*threads=*/1, "");
  std::unique_ptr<Stream> stream_ = device_->NewStream();
  BatchUpload upload_ = *BatchUpload::Make(*device_, /*lanes=*/8, /*max_tokens=*/8);
};

TEST_F(BatchUploadTest, CountsTheSlotsThatAllLanesMayHaveInUse) {
  for (const auto& before : std::vector<std::vector<int>>{
           {0}, {99, 4095}, {131071}, {131072}, {1 << 20, 1 << 20, 1 << 20}}) {
    int64_t slots = 0;
    for (int positions : before) slots += positions + 1;
    EXPECT_GE(Upload(before).batch.max_slots, slots);
  }
  EXPECT_LT(Upload({99, 4095}).batch.max_slots, Upload({99, 131072}).batch.max_slots);
}

TEST_F(BatchUploadTest, CountsNoMoreThanCachesHave) {
  Restart(/*longest_cache=*/1 << 15);
  const UploadedBatch full = Upload({1 << 15, 1 << 15});
  EXPECT_EQ(full.batch.max_slots, 1 << 16);
  EXPECT_EQ(Upload({1 << 20, 1 << 29}).decode_key(), full.decode_key());
}

TEST_F(BatchUploadTest, StepsThatEnqueueTheSameHaveOneKey) {
  const uint64_t key = Upload({5, 900}).decode_key();
  EXPECT_EQ(Upload({6, 901}).decode_key(), key);
  EXPECT_EQ(Upload({40, 16}).decode_key(), key);
  EXPECT_NE(Upload({5}).decode_key(), key);
  EXPECT_NE(Upload({5, 200000}).decode_key(), key);
  EXPECT_EQ(Upload({5, 200001}).decode_key(), Upload({5, 200000}).decode_key());
}

}  // namespace
}  // namespace keyline
