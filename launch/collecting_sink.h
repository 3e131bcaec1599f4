// CollectingSink: keeps what a request hears; read it after Engine::Run has returned.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/engine/token_sink.h"

namespace keyline {

class CollectingSink : public TokenSink {
 public:
  // `on_text` (may be null) hears text as it comes, on the engine's thread.
  explicit CollectingSink(std::function<void(const std::string&)> on_text = nullptr)
      : on_text_(std::move(on_text)) {}

  void OnTokens(const TokenDelta& delta) override {
    tokens.insert(tokens.end(), delta.tokens.begin(), delta.tokens.end());
    token_times.insert(token_times.end(), delta.tokens.size(), absl::Now());
    text += delta.text;
    if (on_text_) on_text_(delta.text);
  }
  void OnLogits(int /*first_position*/, std::span<const float> rows) override {
    logits.insert(logits.end(), rows.begin(), rows.end());
  }
  void OnFinish(const Finish& f) override { finish = f; }
  void OnError(const absl::Status& error) override { status = error; }

  std::vector<int32_t> tokens;
  std::vector<absl::Time> token_times;
  std::string text;
  std::vector<float> logits;  // of a score request that asked for them, [tokens, vocab]
  std::optional<Finish> finish;
  absl::Status status;

 private:
  std::function<void(const std::string&)> on_text_;
};

}  // namespace keyline
