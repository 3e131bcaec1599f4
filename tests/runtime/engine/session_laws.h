// An engine that serves while a test asks, and what its answers must equal: the same chunks fed to
// a pipeline by hand, without a session.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "tests/fixtures/tiny_pipeline.h"

namespace keyline::testing {

constexpr int kVocab = 320;

// Runs `client` on a thread of its own while an engine serves; then stops the engine.
void WhileServing(const TinySetup& setup, const EngineOptions& options,
                  const std::function<void(Engine&)>& client);

// Greedy, without text.
Request Ask(std::vector<int32_t> prompt, int new_tokens);
// The same as the next turn of a session.
Request AskSession(Engine& engine, const std::string& id, std::vector<int32_t> prompt,
                   int new_tokens);

// Submits and waits for the end.
std::shared_ptr<RecordingSink> Hear(Engine& engine, const Request& request);
// Its tokens; fails the test where it did not end well.
std::vector<int32_t> TokensOf(Engine& engine, const Request& request);

// A policy by name with sinks and a grace ring where it has them.
LanePolicy PolicyFor(const std::string& name, int cache_length, int chunk_size);

struct Turn {
  std::vector<int32_t> prompt;
  int new_tokens = 0;
};
struct Conversation {
  std::vector<std::vector<int32_t>> answers;  // one a turn
  std::vector<std::string> layers;            // the lane's state at the end, a layer each
};
// By hand, on one rank: each turn's tokens in the chunks that the chunk plan gives them.
// `boundary`: a prefix mark of the first turn.
Conversation FeedByHand(TinySetup setup, const LanePolicy& policy, const std::vector<Turn>& turns,
                        int boundary = 0);

}  // namespace keyline::testing
