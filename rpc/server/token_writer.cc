#include "rpc/server/token_writer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "rpc/wire/raw_message.h"
#include "rpc/wire/reply_to_proto.h"
#include "rpc/wire/status_to_grpc.h"

namespace keyline {
namespace {

// However few tokens: a token's text and twenty alternatives come to some 300 bytes.
constexpr size_t kMaxPendingBytes = 4 << 20;

}  // namespace

void TokenWriter::Prepare(const Request& request) {
  prompt_info_.set_prompt_tokens(static_cast<uint32_t>(request.prompt.size()));
  prompt_info_.set_seed(request.sampling.seed);
}

void TokenWriter::Refuse(const grpc::Status& status) {
  {
    std::lock_guard lock(mutex_);
    error_ = status;
  }
  SendNext();
}

void TokenWriter::OnStart(const Usage& usage) {
  {
    std::lock_guard lock(mutex_);
    prompt_info_.set_prompt_tokens(usage.prompt_tokens);  // with a session's earlier ones
    prompt_info_pending_ = true;
  }
  Schedule();
}

void TokenWriter::OnTokens(const TokenDelta& delta) {
  bool too_slow = false;
  {
    std::lock_guard lock(mutex_);
    if (ended_ || error_) return;
    AppendDelta(delta, &pending_);
    too_slow = pending_.token_ids_size() > max_pending_tokens_ ||
               pending_.text().size() > kMaxPendingBytes;
    if (too_slow) {
      Abandon({grpc::StatusCode::RESOURCE_EXHAUSTED,
               absl::StrCat("the stream was read too slowly: ", pending_.token_ids_size(),
                            " tokens were waiting, at most ", max_pending_tokens_,
                            " may; the tokens up to here are valid")});
    }
  }
  if (too_slow) CancelRequest();
  Schedule();
}

void TokenWriter::OnFinish(const keyline::Finish& finish) {
  {
    std::lock_guard lock(mutex_);
    finish_ = FinishToProto(finish);
  }
  Schedule();
}

void TokenWriter::OnError(const absl::Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (!error_) error_ = StatusToGrpc(status);
  }
  Schedule();
}

void TokenWriter::OnWriteDone(bool ok) {
  if (!ok) CancelRequest();  // the connection is gone
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) Abandon({grpc::StatusCode::CANCELLED, "the client is gone"});
  }
  SendNext();
}

// A cancel, a deadline or a lost connection.
void TokenWriter::OnCancel() {
  CancelRequest();  // first: the lane is what others wait for
  {
    std::lock_guard lock(mutex_);
    Abandon({grpc::StatusCode::CANCELLED, "cancelled"});
  }
  SendNext();
}

void TokenWriter::Schedule() {
  {
    std::lock_guard lock(mutex_);
    if (scheduled_ || writing_ || ended_) return;  // OnWriteDone sends what is next
    scheduled_ = true;
  }
  sender_.Schedule(shared_from_this());
}

// gRPC is called without the mutex: the engine must not wait for it. While writing_ or ended_ is
// set nobody else calls it.
void TokenWriter::SendNext() {
  Step step;
  {
    std::lock_guard lock(mutex_);
    scheduled_ = false;
    step = TakeStep();
  }
  if (step.event) bytes_ = SerializeMessage(*step.event);
  if (step.event && step.end) {
    StartWriteAndFinish(&bytes_, grpc::WriteOptions(), *step.end);
  } else if (step.event) {
    StartWrite(&bytes_);
  } else if (step.end) {
    Finish(*step.end);
  }
}

TokenWriter::Step TokenWriter::TakeStep() {
  Step step;
  if (writing_ || ended_) return step;
  if (prompt_info_pending_) {
    prompt_info_pending_ = false;
    *step.event.emplace().mutable_prompt_info() = prompt_info_;
  } else if (pending_.token_ids_size() > 0 || !pending_.text().empty()) {
    step.event.emplace().mutable_delta()->Swap(&pending_);
  } else if (error_) {
    step.end = error_;
  } else if (finish_) {
    *step.event.emplace().mutable_finish() = *std::move(finish_);
    step.end = grpc::Status::OK;
  }
  ended_ = step.end.has_value();
  writing_ = step.event.has_value() && !ended_;
  return step;
}

// Nothing more is sent; the call ends with `status`.
void TokenWriter::Abandon(const grpc::Status& status) {
  prompt_info_pending_ = false;
  pending_.Clear();
  finish_.reset();
  if (!error_) error_ = status;
}

}  // namespace keyline
