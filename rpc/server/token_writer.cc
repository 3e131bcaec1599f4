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

void TokenWriter::OnStart(const Usage& usage) {
  (void)usage;
  std::lock_guard lock(mutex_);
  prompt_info_pending_ = true;
  Pump();
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
    } else {
      Pump();
    }
  }
  if (too_slow) CancelRequest();
}

void TokenWriter::OnFinish(const keyline::Finish& finish) {
  std::lock_guard lock(mutex_);
  finish_ = FinishToProto(finish);
  Pump();
}

void TokenWriter::OnError(const absl::Status& status) { OnEnd(StatusToGrpc(status)); }

void TokenWriter::OnEnd(const grpc::Status& status) {
  std::lock_guard lock(mutex_);
  if (!error_) error_ = status;
  Pump();
}

void TokenWriter::OnWriteDone(bool ok) {
  if (!ok) CancelRequest();  // the connection is gone
  std::lock_guard lock(mutex_);
  writing_ = false;
  if (ok) {
    Pump();
  } else {
    Abandon({grpc::StatusCode::CANCELLED, "the client is gone"});
  }
}

// A cancel, a deadline or a lost connection.
void TokenWriter::OnCancel() {
  CancelRequest();  // first: the lane is what others wait for
  std::lock_guard lock(mutex_);
  Abandon({grpc::StatusCode::CANCELLED, "cancelled"});
}

void TokenWriter::Pump() {
  if (writing_ || ended_) return;
  v1::GenerateEvent event;
  if (prompt_info_pending_) {
    prompt_info_pending_ = false;
    *event.mutable_prompt_info() = prompt_info_;
    Send(event);
  } else if (pending_.token_ids_size() > 0 || !pending_.text().empty()) {
    event.mutable_delta()->Swap(&pending_);
    Send(event);
  } else if (error_) {
    ended_ = true;
    Finish(*error_);
  } else if (finish_) {
    ended_ = true;
    *event.mutable_finish() = *std::move(finish_);
    bytes_ = SerializeMessage(event);
    StartWriteAndFinish(&bytes_, grpc::WriteOptions(), grpc::Status::OK);
  }
}

void TokenWriter::Send(const v1::GenerateEvent& event) {
  writing_ = true;
  bytes_ = SerializeMessage(event);
  StartWrite(&bytes_);
}

void TokenWriter::Abandon(const grpc::Status& status) {
  prompt_info_pending_ = false;
  pending_.Clear();
  finish_.reset();
  if (!error_) error_ = status;
  Pump();
}

}  // namespace keyline
