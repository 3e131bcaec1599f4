// TokenSink: where a request's tokens go. Called on the engine's thread; must not block.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "runtime/engine/request.h"

namespace keyline {

class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // The request has a lane and its first step is on its way.
  virtual void OnStart(const Usage& usage) { (void)usage; }
  virtual void OnTokens(const TokenDelta& delta) = 0;
  // Whole rows of a score request's logits, float32 [rows, vocab], in order: row i is what the
  // model says after token first_position + i. Nothing is kept.
  virtual void OnLogits(int first_position, std::span<const float> rows) {
    (void)first_position;
    (void)rows;
  }
  // Exactly one of the two, last.
  virtual void OnFinish(const Finish& finish) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

}  // namespace keyline
