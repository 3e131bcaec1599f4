#include "rpc/server/send_thread.h"

#include <utility>

namespace keyline {

SendThread::~SendThread() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void SendThread::Schedule(std::shared_ptr<Sending> stream) {
  {
    std::lock_guard lock(mutex_);
    scheduled_.push_back(std::move(stream));
    if (scheduled_.size() > 1) return;  // it has been woken
  }
  wake_.notify_one();
}

void SendThread::Run() {
  std::vector<std::shared_ptr<Sending>> streams;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !scheduled_.empty(); });
      if (stop_) return;
      streams.swap(scheduled_);
    }
    for (const std::shared_ptr<Sending>& stream : streams) stream->SendNext();
    streams.clear();
  }
}

}  // namespace keyline
