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
#include "runtime/pipeline/plan_facts.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using testing::GoldenModel;
using testing::OpenTiny;
using testing::RandomIds;
using testing::SpecOf;
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

// A piece of one token or more for `lane`, whose last token is sampled after.
void AddSampled(pipeline::PlanBatch& batch, int lane, int first_position,
                const std::vector<int32_t>& ids) {
  pipeline::PlanChunk& chunk = *batch.add_chunks();
  chunk.set_lane(lane);
  chunk.set_first_position(first_position);
  chunk.set_chunk_position(first_position);
  chunk.set_chunk_tokens(static_cast<int>(ids.size()));
  chunk.set_output(pipeline::OUTPUT_SAMPLE);
  for (const int32_t id : ids) chunk.add_token_ids(id);
}

TEST(Pipeline, AStepMayBeginBeforeTheLastOneHasEnded) {
  const TinySetup setup{.lanes = 2};
  const auto tiny = OpenTiny(setup);
  ASSERT_TRUE(tiny.ok()) << tiny.status();
  const auto device = OpenDevice("cpu", {.threads = 1});
  ASSERT_TRUE(device.ok()) << device.status();
  const auto comms = MakeLocalCommunicators(1);
  Communicator& comm = *comms[0];
  const auto stage = Stage::Create(**device, tiny->weights(), *tiny->model,
                                   SpecOf(setup, *tiny->model), 0, nullptr);
  ASSERT_TRUE(stage.ok()) << stage.status();
  // Lane 1 first: which tokens are whose does not follow from their order.
  pipeline::StepPlan prompts;
  for (int lane = 0; lane < 2; ++lane) {
    pipeline::OpenLane& open = *prompts.add_open();
    open.set_lane(lane);
    open.set_policy("dense");
    open.add_cache_length(256);
    open.set_top_p(1);
  }
  AddSampled(*prompts.add_batches(), 1, 0, {5, 6, 7});
  AddSampled(*prompts.mutable_batches(0), 0, 0, {1, 2});
  const auto first = (*stage)->Run(prompts, comm);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_EQ(first->tokens_size(), 2);
  EXPECT_EQ(first->tokens(0).lane(), 1);
  EXPECT_EQ(first->tokens(1).lane(), 0);

  // One token more of each lane: in two steps one after the other, then with both under way.
  pipeline::StepPlan plans[2];
  for (int i = 0; i < 2; ++i) {
    const auto& token = first->tokens(1 - i);
    plans[i].set_step(10 + i);
    AddSampled(*plans[i].add_batches(), i, i == 0 ? 2 : 3, {token.token()});
  }
  std::vector<int> expected;
  for (const pipeline::StepPlan& plan : plans) {
    const auto result = (*stage)->Run(plan, comm);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->tokens_size(), 1);
    expected.push_back(result->tokens(0).token());
  }
  ASSERT_TRUE((*stage)->Run(prompts, comm).ok());
  for (const pipeline::StepPlan& plan : plans) ASSERT_TRUE((*stage)->Begin(plan, comm).ok());
  EXPECT_EQ((*stage)->running(), 2);
  for (int i = 0; i < 2; ++i) {
    const pipeline::StepResult result = (*stage)->End(comm);
    EXPECT_EQ(result.step(), 10u + i);
    ASSERT_EQ(result.tokens_size(), 1);
    EXPECT_EQ(result.tokens(0).lane(), i);
    EXPECT_EQ(result.tokens(0).token(), expected[i]);
  }
  EXPECT_EQ((*stage)->running(), 0);
}

TEST(PlanFacts, WhatAsksForTokensOnly) {
  const auto plan_with = [](auto change) {
    pipeline::StepPlan plan;
    AddSampled(*plan.add_batches(), 0, 0, {1});
    change(plan, *plan.mutable_batches(0)->mutable_chunks(0));
    return AsksTokensOnly(plan);
  };
  using Plan = pipeline::StepPlan;
  using Chunk = pipeline::PlanChunk;
  EXPECT_TRUE(plan_with([](Plan&, Chunk&) {}));
  EXPECT_TRUE(plan_with([](Plan&, Chunk& c) { c.set_output(pipeline::OUTPUT_NONE); }));
  EXPECT_TRUE(plan_with([](Plan& p, Chunk&) { p.set_want_timing(true); }));
  EXPECT_FALSE(plan_with([](Plan&, Chunk& c) { c.set_output(pipeline::OUTPUT_LOGPROBS); }));
  EXPECT_FALSE(plan_with([](Plan&, Chunk& c) { c.set_output(pipeline::OUTPUT_HIDDEN); }));
  EXPECT_FALSE(plan_with([](Plan&, Chunk& c) { c.set_top_logprobs(1); }));
  EXPECT_FALSE(plan_with([](Plan&, Chunk& c) { c.set_trace(true); }));
  EXPECT_FALSE(plan_with([](Plan& p, Chunk&) { p.set_want_placements(true); }));
  EXPECT_FALSE(plan_with([](Plan& p, Chunk&) { p.add_save(0); }));
  EXPECT_FALSE(plan_with([](Plan& p, Chunk&) { p.add_batches(); }));
  EXPECT_FALSE(plan_with([](Plan& p, Chunk&) {
    for (int lane = 1; lane <= kLogitRows; ++lane) AddSampled(*p.mutable_batches(0), lane, 0, {1});
  }));
}

// One chunk of `tokens` tokens into `lane`, opened by `open`, with its log-probabilities.
pipeline::StepPlan ScorePlan(const pipeline::OpenLane& open, int first_position, int tokens) {
  pipeline::StepPlan plan;
  *plan.add_open() = open;
  pipeline::PlanChunk& chunk = *plan.add_batches()->add_chunks();
  chunk.set_lane(open.lane());
  chunk.set_first_position(first_position);
  chunk.set_chunk_position(first_position);
  chunk.set_chunk_tokens(tokens);
  chunk.set_takes_mass(first_position > 0);
  chunk.set_output(pipeline::OUTPUT_LOGPROBS);
  for (int i = 0; i < tokens; ++i) {
    chunk.add_token_ids(10 + 3 * i);
    chunk.add_targets(7);
  }
  return plan;
}

pipeline::StepResult RunPlan(Coordinator& coordinator, pipeline::StepPlan plan) {
  EXPECT_TRUE(coordinator.Launch(std::move(plan)).ok());
  auto result = coordinator.Collect();
  EXPECT_TRUE(result.ok()) << result.status();
  return std::move(result->merged);
}

TEST(Pipeline, ASavedLaneGoesOnInAnotherLaneOfOtherRanks) {
  pipeline::OpenLane open;
  open.set_policy("h2o");
  open.add_cache_length(24);
  open.set_grace(4);
  TinySetup setup{.ranks = 3, .cache_length = 24, .policy = "h2o"};
  pipeline::LaneState state;
  std::vector<float> expected;
  const auto logprobs = [](const pipeline::StepResult& result) {
    return std::vector<float>(result.scores(0).logprobs().begin(),
                              result.scores(0).logprobs().end());
  };
  WithPipeline(setup, [&](Coordinator& c) {
    RunPlan(c, ScorePlan(open, 0, 24));
    // The lane is saved as it was before the same plan opens it for another sequence.
    pipeline::StepPlan plan = ScorePlan(open, 0, 5);
    plan.add_save(0);
    const pipeline::StepResult result = RunPlan(c, std::move(plan));
    ASSERT_EQ(result.saved_size(), 1);
    state = result.saved(0);
    EXPECT_EQ(state.status_code(), 0);
    EXPECT_EQ(state.layers_size(), 3);
    open.set_lane(1);
    *open.mutable_restore() = state.layers();
    open.set_restore_tokens(24);
    expected = logprobs(RunPlan(c, ScorePlan(open, 24, 9)));
    open.set_keep(true);
    open.clear_restore();
    RunPlan(c, ScorePlan(open, 33, 1));
    c.Shutdown();
  });
  open.set_keep(false);
  setup.ranks = 2;
  WithPipeline(setup, [&](Coordinator& c) {
    open.set_lane(2);
    *open.mutable_restore() = state.layers();
    const pipeline::StepResult good = RunPlan(c, ScorePlan(open, 24, 9));
    EXPECT_EQ(logprobs(good), expected);
    EXPECT_EQ(good.restore_failures_size(), 0);

    const auto failure = [&](pipeline::OpenLane bad) {
      pipeline::StepPlan plan;
      *plan.add_open() = std::move(bad);
      const pipeline::StepResult result = RunPlan(c, std::move(plan));
      EXPECT_GE(result.restore_failures_size(), 1);
      if (result.restore_failures_size() == 0) return absl::StatusCode::kOk;
      EXPECT_EQ(result.restore_failures(0).lane(), 2);
      EXPECT_FALSE(result.restore_failures(0).status_message().empty());
      return static_cast<absl::StatusCode>(result.restore_failures(0).status_code());
    };
    pipeline::OpenLane bad = open;
    bad.mutable_restore()->RemoveLast();
    EXPECT_EQ(failure(bad), absl::StatusCode::kFailedPrecondition);
    bad = open;
    bad.mutable_restore(2)->resize(100);
    EXPECT_EQ(failure(bad), absl::StatusCode::kInvalidArgument);
    bad = open;
    bad.set_restore_tokens(23);
    EXPECT_EQ(failure(bad), absl::StatusCode::kDataLoss);
    bad = open;
    bad.set_grace(5);
    EXPECT_EQ(failure(bad), absl::StatusCode::kDataLoss);
    bad = open;
    bad.set_policy("last_recent");
    EXPECT_EQ(failure(bad), absl::StatusCode::kDataLoss);
    EXPECT_EQ(logprobs(RunPlan(c, ScorePlan(open, 24, 9))), expected);
    c.Shutdown();
  });
}

}  // namespace
}  // namespace keyline
