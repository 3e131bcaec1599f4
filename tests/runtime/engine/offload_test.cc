// Layers that stream through a small device: the same bits for every budget, on any number of
// ranks, and never more memory than the budget.

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using ::testing::HasSubstr;
using testing::OpenTiny;
using testing::RandomIds;
using testing::ServeAll;
using testing::SpecOf;
using testing::TinyModel;
using testing::TinySetup;
using testing::WithPipeline;

constexpr int kVocab = 320;
constexpr int kLayers = 7;

TinySetup SetupOf(const std::string& policy, int ranks) {
  return {.random_layers = kLayers,
          .ranks = ranks,
          .lanes = 3,
          .max_pass_tokens = 24,
          .chunk_size = 12,
          .cache_length = policy == "dense" ? 160 : 40,
          .policy = policy};
}

// All that a run led to.
struct Outcome {
  std::vector<float> logits;
  std::vector<std::vector<std::vector<std::vector<int32_t>>>> kept;  // by chunk, layer, head
  std::vector<std::vector<int32_t>> tokens;
  bool operator==(const Outcome&) const = default;
};

struct Counted {
  std::vector<int64_t> streamed_bytes;  // by rank
  int steps = 0;
};

// A prompt of 110 tokens with all its logits and kept sets, and three that decode beside it.
Outcome OutcomeOf(const TinySetup& setup, Counted* counted = nullptr) {
  std::vector<Request> requests(4);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = RandomIds(std::vector<int>{110, 1, 31, 64}[i], kVocab, 5 + i);
    requests[i].response.text = false;
    requests[i].stop.max_new_tokens = 9;
    requests[i].stop.ignore_eos = true;
  }
  requests[0].score = {.enabled = true, .logits = true, .trace = true, .decode_tail = 4};
  requests[2].sampling = {.temperature = 0.9f, .top_p = 0.9f, .seed = 11};
  Outcome outcome;
  WithPipeline(setup, [&](Coordinator& coordinator) {
    EngineOptions options;
    if (counted != nullptr) {
      counted->streamed_bytes.assign(setup.ranks, 0);
      options.on_timing = [&](const pipeline::StageTiming& timing, uint64_t step) {
        counted->streamed_bytes[timing.rank()] = timing.streamed_bytes();
        counted->steps = static_cast<int>(step);
      };
    }
    Engine engine(coordinator, nullptr, options);
    const auto sinks = ServeAll(engine, requests);
    for (const auto& sink : sinks) {
      ASSERT_TRUE(sink->status.ok()) << sink->status;
      outcome.tokens.push_back(sink->tokens);
    }
    outcome.logits = sinks[0]->logits;
    for (const ChunkTrace& chunk : sinks[0]->finish.score->trace) {
      outcome.kept.push_back(chunk.kept);
    }
  });
  return outcome;
}

// What each rank needs; the ranks are thought to be alike where one number is asked for.
std::vector<StageNeeds> NeedsOf(const TinySetup& setup) {
  const absl::StatusOr<TinyModel> tiny = OpenTiny(setup);
  EXPECT_TRUE(tiny.ok()) << tiny.status();
  const auto device = OpenDevice("cpu", {.threads = 1});
  std::vector<StageNeeds> needs;
  for (int rank = 0; rank < setup.ranks; ++rank) {
    needs.push_back(*NeedsOfStage(**device, *tiny->model, SpecOf(setup, *tiny->model), rank));
  }
  return needs;
}

class Offloaded : public ::testing::TestWithParam<std::tuple<std::string, int>> {};

TEST_P(Offloaded, AnyBudgetGivesTheSameBits) {
  const auto& [policy, ranks] = GetParam();
  TinySetup setup = SetupOf(policy, ranks);
  const Outcome expected = OutcomeOf(SetupOf(policy, 1));
  ASSERT_EQ(expected.logits.size(), size_t{110} * kVocab);
  ASSERT_FALSE(expected.kept.empty());
  const std::vector<StageNeeds> needs = NeedsOf(setup);
  // From everything to two slots: each number of layers that stay, and a little room besides for
  // longer steps.
  std::set<size_t> budgets;
  for (int stay = 0; stay <= static_cast<int>(needs[0].layers.size()); ++stay) {
    size_t budget = 0;
    for (const StageNeeds& rank : needs) {
      budget =
          std::max(budget, LeastBytes(rank, std::min(stay, static_cast<int>(rank.layers.size()))));
    }
    budgets.insert(budget);
    budgets.insert(budget + 60 * needs[0].token_bytes);
  }
  for (const size_t budget : budgets) {
    setup.device_memory = budget;
    EXPECT_TRUE(OutcomeOf(setup) == expected) << budget << " bytes";
  }
  // Three slots; layers that host memory has no room for; several steps in flight.
  setup.device_memory = 0;
  setup.offload = Offload::kAll;
  EXPECT_TRUE(OutcomeOf(setup) == expected) << "all layers";
  setup.host_bytes = 2 * needs[0].layers[0];
  EXPECT_TRUE(OutcomeOf(setup) == expected) << "layers from the checkpoint";
  setup.pipeline_depth = ranks + 1;
  EXPECT_TRUE(OutcomeOf(setup) == expected) << "depth " << ranks + 1;
}

INSTANTIATE_TEST_SUITE_P(PoliciesAndRanks, Offloaded,
                         ::testing::Combine(::testing::Values("dense", "h2o", "last_recent"),
                                            ::testing::Values(1, 2)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST(Offload, OneSweepServesAPromptAndAllLanes) {
  TinySetup setup = SetupOf("h2o", 1);
  setup.offload = Offload::kAll;
  const StageNeeds needs = NeedsOf(setup)[0];
  const auto sweeps = [&](const Counted& counted) {
    const size_t layers = needs.layers.size() * needs.layers[0];
    return static_cast<double>(counted.streamed_bytes[0]) / static_cast<double>(layers);
  };
  Counted roomy;
  OutcomeOf(setup, &roomy);
  // Three lanes' prompts are one step, then decode steps of all lanes; the fourth request follows.
  // Beside what was prefetched there is a sweep a step.
  EXPECT_NEAR(sweeps(roomy), roomy.steps, 0.5);
  EXPECT_LT(roomy.steps, 25);
  // With no room for hidden states of more than a pass a sweep serves one pass.
  setup.device_memory = LeastBytes(needs, 0);
  Counted narrow;
  OutcomeOf(setup, &narrow);
  EXPECT_GT(sweeps(narrow), sweeps(roomy) + 3);
}

TEST(Offload, RefusesABudgetBelowTwoSlots) {
  const TinySetup setup = SetupOf("dense", 1);
  const StageNeeds needs = NeedsOf(setup)[0];
  const size_t least = LeastBytes(needs, 0);
  EXPECT_TRUE(PlanOffload(needs, Offload::kAuto, least).ok());
  const auto refused = PlanOffload(needs, Offload::kAuto, least - 1);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status().message(), HasSubstr("needs"));
}

}  // namespace
}  // namespace keyline
