#include "rpc/server/cache_event_writer.h"

#include <utility>

#include "rpc/wire/reply_to_proto.h"

namespace keyline {
namespace {

int64_t NumbersOf(const CacheEvent& event) {
  int64_t numbers = 0;
  for (const std::vector<HeadCacheEvent>& heads : event.layers) {
    for (const HeadCacheEvent& head : heads) {
      numbers += static_cast<int64_t>(head.slots.size() + 2 * head.moved_from.size() +
                                      head.evicted.size());
    }
  }
  return numbers;
}

}  // namespace

CacheEventWriter::CacheEventWriter(SendThread& sender, const v1::WatchCacheEventsRequest& request,
                                   const Limits& limits, std::shared_ptr<void> place)
    : sender_(sender),
      request_id_(request.request_id()),
      layers_(request.layers().begin(), request.layers().end()),
      limits_(limits),
      place_(std::move(place)) {
  StartSendInitialMetadata();  // the client knows that it watches
}

void CacheEventWriter::OnCacheEvent(const std::shared_ptr<const CacheEvent>& event) {
  if (!request_id_.empty() && event->label != request_id_) return;
  const int64_t numbers = NumbersOf(*event);
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    // One event always fits an empty queue, however large it is.
    if (queue_.size() >= limits_.events ||
        (!queue_.empty() && queued_numbers_ + numbers > limits_.numbers)) {
      ++lost_;
      return;
    }
    queue_.push_back({std::exchange(lost_, 0), numbers, event});
    queued_numbers_ += numbers;
    if (scheduled_ || writing_) return;  // OnWriteDone sends what is next
    scheduled_ = true;
  }
  sender_.Schedule(shared_from_this());
}

void CacheEventWriter::SendNext() {
  Waiting next{.lost = 0, .numbers = 0, .event = nullptr};
  {
    std::lock_guard lock(mutex_);
    scheduled_ = false;
    if (writing_ || ended_) return;
    if (!queue_.empty()) {
      next = std::move(queue_.front());
      queue_.pop_front();
      queued_numbers_ -= next.numbers;
    } else if (lost_ > 0) {
      next.lost = std::exchange(lost_, 0);
    } else {
      return;
    }
    writing_ = true;
  }
  message_ = ToProto(next);
  StartWrite(&message_);
}

v1::CacheEvent CacheEventWriter::ToProto(const Waiting& waiting) const {
  v1::CacheEvent to;
  if (waiting.event != nullptr) to = CacheEventToProto(*waiting.event, layers_);
  to.set_lost(waiting.lost);
  return to;
}

void CacheEventWriter::OnWriteDone(bool ok) {
  bool end = false;
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    end = ended_;  // meanwhile
  }
  if (end) {
    Finish({grpc::StatusCode::CANCELLED, "cancelled"});
  } else if (!ok) {
    OnCancel();  // the connection is gone
  } else {
    SendNext();
  }
}

// A cancel, a deadline, a lost connection or the server's end. Finish waits for a write that is on
// its way.
void CacheEventWriter::OnCancel() {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(ended_, true)) return;
    queue_.clear();
    if (writing_) return;
  }
  Finish({grpc::StatusCode::CANCELLED, "cancelled"});
}

void CacheEventWriter::OnDone() { const std::shared_ptr<CacheEventWriter> self = std::move(self_); }

}  // namespace keyline
