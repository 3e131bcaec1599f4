// The scheduler in virtual time: no pipeline, no clock, random requests, cancels and results.

#include "runtime/engine/scheduler.h"

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "gtest/gtest.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline {
namespace {

using testing::RecordingSink;

struct Made {
  std::shared_ptr<Sequence> sequence;
  std::shared_ptr<RecordingSink> sink;
};

Made MakeSequence(RequestId id, std::vector<int> chunks, int new_tokens, int top_logprobs = 0) {
  Request request;
  int prompt = 0;
  for (int n : chunks) prompt += n;
  request.prompt.assign(prompt, 1);
  request.cache.emplace();
  request.cache->cache_length = {64};
  request.response.text = false;
  request.response.top_logprobs = top_logprobs;
  request.stop.max_new_tokens = new_tokens;
  auto sink = std::make_shared<RecordingSink>();
  return {std::make_shared<Sequence>(id, std::move(request), sink, nullptr, std::move(chunks),
                                     100000, absl::UnixEpoch()),
          sink};
}

TEST(Scheduler, PiecesOfTheFirstChunkFillTheBudgetAndLaterChunksStayWhole) {
  Scheduler scheduler({.lanes = 1, .max_pass_tokens = 10, .groups = 1});
  scheduler.Enqueue(MakeSequence(1, {25, 8, 7}, 1).sequence);
  std::vector<std::shared_ptr<Sequence>> started;
  std::vector<int> tokens, positions, mass, chunk_tokens;
  while (auto step = scheduler.NextStep(&started)) {
    const pipeline::PlanChunk& chunk = step->plan.batches(0).chunks(0);
    tokens.push_back(chunk.token_ids_size());
    positions.push_back(chunk.first_position());
    mass.push_back(chunk.takes_mass() ? 1 : 0);
    chunk_tokens.push_back(chunk.chunk_tokens());
  }
  EXPECT_EQ(started.size(), 1u);
  EXPECT_EQ(tokens, (std::vector<int>{10, 10, 5, 8, 7}));
  EXPECT_EQ(positions, (std::vector<int>{0, 10, 20, 25, 33}));
  EXPECT_EQ(mass, (std::vector<int>{0, 0, 0, 1, 1}));
  EXPECT_EQ(chunk_tokens, (std::vector<int>{25, 25, 25, 8, 7}));
}

TEST(Scheduler, NoPieceIsOfOneToken) {
  Scheduler scheduler({.lanes = 2, .max_pass_tokens = 10, .groups = 1});
  scheduler.Enqueue(MakeSequence(1, {11}, 1).sequence);
  scheduler.Enqueue(MakeSequence(2, {9}, 1).sequence);
  std::vector<std::shared_ptr<Sequence>> started;
  std::vector<std::vector<int>> tokens;  // of each step's chunks
  while (auto step = scheduler.NextStep(&started)) {
    tokens.emplace_back();
    for (const pipeline::PlanChunk& chunk : step->plan.batches(0).chunks()) {
      tokens.back().push_back(chunk.token_ids_size());
    }
  }
  // Not 10, which would leave one; then 2 of it and 8 of the other would leave one again.
  EXPECT_EQ(tokens, (std::vector<std::vector<int>>{{9}, {2, 7}, {2}}));
}

TEST(Scheduler, AheadOfTheHostSequencesStayTogether) {
  Scheduler scheduler({.lanes = 3, .max_pass_tokens = 10, .groups = 1, .ahead = true});
  const Made plain = MakeSequence(1, {2}, 3);
  const Made other = MakeSequence(2, {3}, 4);
  scheduler.Enqueue(plain.sequence);
  scheduler.Enqueue(other.sequence);
  std::vector<std::shared_ptr<Sequence>> started;
  const auto next = [&] { return scheduler.NextStep(&started); };
  ASSERT_EQ(next()->plan.batches(0).chunks_size(), 2);
  const auto ahead = next();  // nothing has been heard yet
  ASSERT_EQ(ahead->plan.batches(0).chunks_size(), 2);
  for (const pipeline::PlanChunk& chunk : ahead->plan.batches(0).chunks()) {
    EXPECT_TRUE(chunk.token_is_drawn());
    EXPECT_EQ(chunk.token_ids_size(), 1);
    EXPECT_EQ(chunk.first_position(), chunk.lane() == 0 ? 2 : 3);
  }
  EXPECT_FALSE(next().has_value()) << "two tokens of each are in flight";

  pipeline::SampledTokenResult sampled;
  EXPECT_FALSE(plain.sequence->OnSampled(sampled, absl::UnixEpoch()));
  EXPECT_FALSE(other.sequence->OnSampled(sampled, absl::UnixEpoch()));
  EXPECT_EQ(next()->plan.batches(0).chunks_size(), 2);
  EXPECT_FALSE(plain.sequence->OnSampled(sampled, absl::UnixEpoch()));
  EXPECT_FALSE(other.sequence->OnSampled(sampled, absl::UnixEpoch()));
  // The third token of three is in flight, but not the fourth of four.
  const auto last = next();
  ASSERT_EQ(last->plan.batches(0).chunks_size(), 1);
  EXPECT_EQ(last->plan.batches(0).chunks(0).lane(), other.sequence->lane);

  // One whose token must be heard first holds the others up.
  const Made told = MakeSequence(3, {2}, 5, /*top_logprobs=*/2);
  EXPECT_TRUE(plain.sequence->OnSampled(sampled, absl::UnixEpoch()));
  EXPECT_FALSE(other.sequence->OnSampled(sampled, absl::UnixEpoch()));
  scheduler.Remove(1);
  const Made beside = MakeSequence(4, {2}, 5);
  scheduler.Enqueue(told.sequence);
  scheduler.Enqueue(beside.sequence);
  ASSERT_EQ(next()->plan.batches(0).chunks_size(), 2);
  EXPECT_FALSE(next().has_value());
  EXPECT_FALSE(told.sequence->OnSampled(sampled, absl::UnixEpoch()));
  EXPECT_FALSE(beside.sequence->OnSampled(sampled, absl::UnixEpoch()));
  EXPECT_EQ(next()->plan.batches(0).chunks_size(), 2) << "both decode together";
}

TEST(Scheduler, AChunkThatDoesNotFitIsNotOvertaken) {
  Scheduler scheduler({.lanes = 2, .max_pass_tokens = 10, .groups = 1});
  scheduler.Enqueue(MakeSequence(1, {4, 8}, 1).sequence);
  scheduler.Enqueue(MakeSequence(2, {30}, 1).sequence);
  std::vector<std::shared_ptr<Sequence>> started;
  auto first = scheduler.NextStep(&started);  // 4 of request 1, 6 of request 2
  ASSERT_EQ(first->plan.batches(0).chunks_size(), 2);
  auto second = scheduler.NextStep(&started);  // request 1's whole chunk, then 2 of request 2
  ASSERT_EQ(second->plan.batches(0).chunks_size(), 2);
  EXPECT_EQ(second->plan.batches(0).chunks(0).token_ids_size(), 8);
  EXPECT_EQ(second->plan.batches(0).chunks(1).token_ids_size(), 2);
}

TEST(Scheduler, ASweepTakesWholePassesOverPromptsBesideTheDecodeTokensOfAllLanes) {
  Scheduler scheduler({.lanes = 3, .max_pass_tokens = 10, .groups = 1, .sweep_tokens = 35});
  const Made decoding = MakeSequence(1, {1}, 9);
  scheduler.Enqueue(decoding.sequence);
  std::vector<std::shared_ptr<Sequence>> started;
  ASSERT_TRUE(scheduler.NextStep(&started).has_value());
  pipeline::SampledTokenResult sampled;
  decoding.sequence->OnSampled(sampled, absl::UnixEpoch());
  scheduler.Enqueue(MakeSequence(2, {12, 8, 7}, 1).sequence);
  scheduler.Enqueue(MakeSequence(3, {16, 6}, 1).sequence);
  // Passes are cut as they would be in steps of their own, and a step ends where a whole one could
  // exceed it.
  const auto step = scheduler.NextStep(&started);
  std::vector<std::vector<int>> passes;
  for (const pipeline::PlanBatch& batch : step->plan.batches()) {
    std::vector<int>& tokens = passes.emplace_back();
    for (const pipeline::PlanChunk& chunk : batch.chunks()) {
      tokens.push_back(chunk.token_ids_size());
    }
  }
  EXPECT_EQ(passes, (std::vector<std::vector<int>>{{1, 9}, {3, 7}, {8, 2}}));
  const auto rest = scheduler.NextStep(&started);
  ASSERT_EQ(rest->plan.batches_size(), 3);
  EXPECT_EQ(rest->plan.batches(0).chunks(0).token_ids_size(), 7);
  EXPECT_EQ(rest->plan.batches(0).chunks(1).token_ids_size(), 3);
  EXPECT_EQ(rest->plan.batches(1).chunks(0).token_ids_size(), 4);
  EXPECT_EQ(rest->plan.batches(2).chunks(0).token_ids_size(), 6);
  EXPECT_FALSE(scheduler.NextStep(&started).has_value());
}

TEST(Scheduler, GivesEveryMicroBatchItsTurn) {
  Scheduler scheduler({.lanes = 4, .max_pass_tokens = 16, .groups = 2});
  std::vector<Made> made;
  for (int i = 0; i < 4; ++i) {
    made.push_back(MakeSequence(i + 1, {1}, 50));
    scheduler.Enqueue(made.back().sequence);
  }
  std::vector<std::shared_ptr<Sequence>> started;
  auto step = scheduler.NextStep(&started);
  ASSERT_EQ(started.size(), 4u);
  const auto answer = [&](const ScheduledStep& s) {
    for (const auto& sequence : s.by_lane) {
      if (sequence == nullptr) continue;
      pipeline::SampledTokenResult sampled;
      sampled.set_lane(sequence->lane);
      sampled.set_token(3);
      sequence->OnSampled(sampled, absl::UnixEpoch());
    }
  };
  answer(*step);
  // Two steps of two sequences each can be in flight, never one with all four.
  for (int round = 0; round < 10; ++round) {
    auto a = scheduler.NextStep(&started);
    auto b = scheduler.NextStep(&started);
    ASSERT_TRUE(a.has_value() && b.has_value());
    EXPECT_EQ(a->plan.batches(0).chunks_size(), 2);
    EXPECT_EQ(b->plan.batches(0).chunks_size(), 2);
    EXPECT_FALSE(scheduler.NextStep(&started).has_value());
    answer(*a);
    answer(*b);
  }
}

// Random requests, cancels and depths: lanes are conserved, nobody starves, positions are
// contiguous, and every sequence that is not cancelled gets all its tokens.
TEST(Scheduler, SimulationConservesLanesAndStarvesNobody) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const int groups = 1 + static_cast<int>(random() % 4);
    const int lanes = 1 + static_cast<int>(random() % 6);
    const int budget = lanes + 12;
    Scheduler scheduler({.lanes = lanes, .max_pass_tokens = budget, .groups = groups});
    std::map<RequestId, Made> all;
    std::map<RequestId, int> next_position;
    std::map<RequestId, int> wanted;
    std::set<RequestId> cancelled, finished;
    std::deque<ScheduledStep> flights;
    RequestId next_id = 1;
    int arrivals = 20;
    for (int tick = 0; tick < 20000 && (arrivals > 0 || !scheduler.idle()); ++tick) {
      if (arrivals > 0 && random() % 3 == 0) {
        --arrivals;
        std::vector<int> chunks = {1 + static_cast<int>(random() % 40)};
        for (uint32_t i = random() % 3; i > 0; --i) {
          chunks.push_back(1 + static_cast<int>(random() % 12));
        }
        wanted[next_id] = 1 + static_cast<int>(random() % 8);
        all[next_id] = MakeSequence(next_id, chunks, wanted[next_id]);
        scheduler.Enqueue(all[next_id].sequence);
        ++next_id;
      }
      if (random() % 40 == 0 && next_id > 1) {
        const RequestId id = 1 + random() % (next_id - 1);
        if (finished.count(id) == 0 && scheduler.Remove(id) != nullptr) cancelled.insert(id);
      }
      std::vector<std::shared_ptr<Sequence>> started;
      if (static_cast<int>(flights.size()) < groups && random() % 2 == 0) {
        if (auto step = scheduler.NextStep(&started)) {
          std::set<int> used;
          int tokens = 0;
          for (const pipeline::PlanChunk& chunk : step->plan.batches(0).chunks()) {
            ASSERT_TRUE(used.insert(chunk.lane()).second) << "a lane twice in one step";
            ASSERT_LT(chunk.lane(), lanes);
            const RequestId id = step->by_lane.at(chunk.lane())->id();
            ASSERT_EQ(chunk.first_position(), next_position[id]);
            next_position[id] += chunk.token_ids_size();
            tokens += chunk.token_ids_size();
          }
          ASSERT_LE(tokens, budget);
          flights.push_back(std::move(*step));
        }
      } else if (!flights.empty()) {
        const ScheduledStep step = std::move(flights.front());
        flights.pop_front();
        for (const pipeline::PlanChunk& chunk : step.plan.batches(0).chunks()) {
          const auto& sequence = step.by_lane.at(chunk.lane());
          if (chunk.output() != pipeline::OUTPUT_SAMPLE || sequence->lane != chunk.lane()) continue;
          pipeline::SampledTokenResult sampled;
          sampled.set_lane(chunk.lane());
          sampled.set_token(5);
          if (sequence->OnSampled(sampled, absl::UnixEpoch())) {
            ASSERT_NE(scheduler.Remove(sequence->id()), nullptr);
            finished.insert(sequence->id());
          }
        }
      }
      ASSERT_LE(scheduler.running(), lanes);
    }
    ASSERT_TRUE(scheduler.idle()) << "seed " << seed << ": somebody starved";
    for (const auto& [id, made] : all) {
      if (cancelled.count(id) != 0) continue;
      EXPECT_EQ(static_cast<int>(made.sink->tokens.size()), wanted[id]) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace keyline
