// The pipeline against golden logits, and against itself: any number of ranks, any depth, any
// pieces.

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "gtest/gtest.h"
#include "runtime/files/checkpoint.h"
#include "runtime/files/safetensors/safetensors.h"
#include "runtime/files/token_ids_file.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using testing::GoldenModel;
using testing::RandomIds;
using testing::TinySetup;
using testing::WithPipeline;

// Logits of every position of `ids` in lane 0, in pieces of `piece` tokens.
std::vector<float> Logits(const TinySetup& setup, const std::vector<int32_t>& ids, int piece) {
  std::vector<float> logits;
  WithPipeline(setup, [&](Coordinator& coordinator) {
    const auto collect = [&] {
      absl::StatusOr<Coordinator::Result> result = coordinator.Collect();
      ASSERT_TRUE(result.ok()) << result.status();
      for (const pipeline::ScoredChunk& scored : result->merged.scores()) {
        const size_t before = logits.size();
        logits.resize(before + scored.logits().size() / sizeof(float));
        std::memcpy(logits.data() + before, scored.logits().data(), scored.logits().size());
      }
    };
    for (size_t at = 0; at < ids.size(); at += piece) {
      pipeline::StepPlan plan;
      if (at == 0) {
        pipeline::OpenLane& open = *plan.add_open();
        open.set_policy(setup.policy);
        open.add_cache_length(setup.cache_length);
      }
      pipeline::PlanChunk& chunk = *plan.add_batches()->add_chunks();
      chunk.set_first_position(static_cast<int>(at));
      chunk.set_chunk_tokens(static_cast<int>(ids.size()));
      chunk.set_output(pipeline::OUTPUT_LOGITS);
      for (size_t i = at; i < std::min(ids.size(), at + piece); ++i) {
        chunk.add_token_ids(ids[i]);
        chunk.add_targets(-1);
      }
      if (coordinator.in_flight() == coordinator.spec().pipeline_depth) collect();
      const absl::Status launched = coordinator.Launch(std::move(plan));
      ASSERT_TRUE(launched.ok()) << launched;
    }
    while (coordinator.in_flight() > 0) collect();
    coordinator.Shutdown();
  });
  return logits;
}

class Golden : public ::testing::TestWithParam<std::string> {};

TEST_P(Golden, LogitsMatch) {
  const std::string file = GoldenModel(GetParam()) + "/expected.safetensors";
  const auto sequences = ReadTokenIds(file);
  ASSERT_TRUE(sequences.ok()) << sequences.status();
  const auto expected_file = SafetensorsSource::Open(file);
  ASSERT_TRUE(expected_file.ok()) << expected_file.status();
  const auto tensor = (*expected_file)->Find("logits");
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  std::vector<float> expected(tensor->rows() * tensor->cols());
  ASSERT_TRUE(ReadRows(*tensor, 0, tensor->rows(), expected.data()).ok());

  const std::vector<int32_t>& ids = (*sequences)[0];
  TinySetup setup{.model = GetParam(), .max_pass_tokens = 256};
  const std::vector<float> got = Logits(setup, ids, 256);
  ASSERT_EQ(got.size(), expected.size() / sequences->size());
  float worst = 0;
  for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - expected[i]));
  EXPECT_LT(worst, 3e-4f);

  // One piece or many, one rank or several, one step in flight or more: the same bits.
  for (int ranks = 1; ranks <= 3; ++ranks) {
    for (int depth : {1, ranks + 1}) {
      setup.ranks = ranks;
      setup.pipeline_depth = depth;
      EXPECT_EQ(Logits(setup, ids, 37), got) << ranks << " ranks, depth " << depth;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Golden,
                         ::testing::Values("llama", "llama3-rope", "qwen3-qknorm-tied"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(Pipeline, TracesComeFromEveryRankInOrder) {
  WithPipeline({.ranks = 3, .cache_length = 16, .policy = "last_recent"}, [](Coordinator& c) {
    pipeline::StepPlan plan;
    pipeline::OpenLane& open = *plan.add_open();
    open.set_policy("last_recent");
    open.add_cache_length(16);
    pipeline::PlanChunk& chunk = *plan.add_batches()->add_chunks();
    chunk.set_chunk_tokens(5);
    chunk.set_trace(true);
    for (int id : {1, 2, 3, 4, 5}) chunk.add_token_ids(id);
    plan.set_want_timing(true);
    ASSERT_TRUE(c.Launch(std::move(plan)).ok());
    const auto result = c.Collect();
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->merged.traces_size(), 1);
    const pipeline::ChunkTraceResult& trace = result->merged.traces(0);
    ASSERT_EQ(trace.layers_size(), 3);
    for (int l = 0; l < 3; ++l) {
      EXPECT_EQ(trace.layers(l).layer(), l);
      for (const pipeline::KeptPositions& head : trace.layers(l).heads()) {
        EXPECT_EQ(std::vector<int>(head.positions().begin(), head.positions().end()),
                  (std::vector<int>{0, 1, 2, 3, 4}));
      }
    }
    ASSERT_EQ(result->timings.size(), 3u);
    for (const pipeline::StageTiming& timing : result->timings) {
      EXPECT_LE(timing.begin_ns(), timing.end_ns());
    }
    c.Shutdown();
  });
}

}  // namespace
}  // namespace keyline
