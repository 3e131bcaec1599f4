#include "tests/runtime/engine/session_laws.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "runtime/cache/chunk_plan.h"
#include "runtime/pipeline/open_lane.h"

namespace keyline::testing {
namespace {

class WaitingSink : public RecordingSink {
 public:
  void OnFinish(const Finish& f) override {
    RecordingSink::OnFinish(f);
    End();
  }
  void OnError(const absl::Status& s) override {
    RecordingSink::OnError(s);
    End();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ended_; });
  }

 private:
  void End() {
    std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
};

// One step of one chunk in lane 0; its sampled token.
int32_t RunChunk(Coordinator& coordinator, pipeline::StepPlan plan, int position,
                 const std::vector<int32_t>& tokens) {
  pipeline::PlanChunk& chunk = *plan.add_batches()->add_chunks();
  chunk.set_first_position(position);
  chunk.set_chunk_position(position);
  chunk.set_chunk_tokens(static_cast<int>(tokens.size()));
  chunk.set_takes_mass(position > 0);
  chunk.set_output(pipeline::OUTPUT_SAMPLE);
  for (const int32_t id : tokens) chunk.add_token_ids(id);
  EXPECT_TRUE(coordinator.Launch(std::move(plan)).ok());
  const auto result = coordinator.Collect();
  EXPECT_TRUE(result.ok()) << result.status();
  return result->merged.tokens(0).token();
}

}  // namespace

void WhileServing(const TinySetup& setup, const EngineOptions& options,
                  const std::function<void(Engine&)>& client) {
  WithPipeline(setup, [&](Coordinator& coordinator) {
    Engine engine(coordinator, nullptr, options);
    std::thread asking([&] {
      client(engine);
      engine.Stop();
    });
    const absl::Status ran = engine.Run();
    EXPECT_TRUE(ran.ok()) << ran;
    asking.join();
  });
}

Request Ask(std::vector<int32_t> prompt, int new_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.response.text = false;
  request.stop.max_new_tokens = new_tokens;
  return request;
}

Request AskSession(Engine& engine, const std::string& id, std::vector<int32_t> prompt,
                   int new_tokens) {
  Request request = Ask(std::move(prompt), new_tokens);
  const auto info = engine.sessions()->Get(id);
  EXPECT_TRUE(info.ok()) << info.status();
  request.session = {.id = id, .turn = info.ok() ? info->turns : 0};
  return request;
}

std::shared_ptr<RecordingSink> Hear(Engine& engine, const Request& request) {
  auto sink = std::make_shared<WaitingSink>();
  const auto id = engine.Submit(request, sink);
  if (id.ok()) {
    sink->Wait();
  } else {
    sink->status = id.status();
  }
  return sink;
}

std::vector<int32_t> TokensOf(Engine& engine, const Request& request) {
  const auto sink = Hear(engine, request);
  EXPECT_TRUE(sink->status.ok()) << sink->status;
  return sink->tokens;
}

LanePolicy PolicyFor(const std::string& name, int cache_length, int chunk_size) {
  LanePolicy policy;
  policy.policy = name;
  policy.cache_length = {cache_length};
  policy.chunk_size = chunk_size;
  if (name != "dense") policy.sinks = 3;
  if (name.find("h2o") != std::string::npos) {
    policy.grace = 8;
    policy.normalize_scores = true;
  }
  return policy;
}

Conversation FeedByHand(TinySetup setup, const LanePolicy& policy, const std::vector<Turn>& turns,
                        int boundary) {
  Conversation heard;
  setup.ranks = 1;
  setup.max_pass_tokens = 256;  // a whole first chunk at once
  WithPipeline(setup, [&](Coordinator& coordinator) {
    const std::vector<int> lengths(coordinator.spec().cache_lengths.size(), policy.cache_length[0]);
    pipeline::StepPlan plan;
    WritePolicy(policy, *plan.add_open());
    int done = 0;
    std::vector<int32_t> pending;
    for (const Turn& turn : turns) {
      std::vector<int32_t> tokens = pending;
      tokens.insert(tokens.end(), turn.prompt.begin(), turn.prompt.end());
      size_t at = 0;
      int32_t sampled = -1;
      for (const int n : PlanChunks(lengths, done + static_cast<int>(tokens.size()),
                                    ChunkSize(policy), done, done == 0 ? boundary : 0)) {
        sampled = RunChunk(coordinator, std::exchange(plan, {}), done,
                           {tokens.begin() + at, tokens.begin() + at + n});
        at += n;
        done += n;
      }
      std::vector<int32_t>& answer = heard.answers.emplace_back();
      for (answer.push_back(sampled); static_cast<int>(answer.size()) < turn.new_tokens; ++done) {
        answer.push_back(RunChunk(coordinator, {}, done, {answer.back()}));
      }
      pending = {answer.back()};
    }
    plan.add_save(0);
    EXPECT_TRUE(coordinator.Launch(std::move(plan)).ok());
    const auto result = coordinator.Collect();
    EXPECT_TRUE(result.ok()) << result.status();
    const auto& layers = result->merged.saved(0).layers();
    heard.layers.assign(layers.begin(), layers.end());
    coordinator.Shutdown();
  });
  return heard;
}

}  // namespace keyline::testing
