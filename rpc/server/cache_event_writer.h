// CacheEventWriter: one WatchCacheEvents call, between the engine and a client that reads at its
// own pace. The engine never waits: what does not fit the bounded queue is lost, and counted.
//
// gRPC holds the object until OnDone; the engine knows it by a weak pointer, so its end is the end
// of the watch.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "keyline/v1/control.pb.h"
#include "rpc/server/send_thread.h"
#include "runtime/engine/cache_events.h"

namespace keyline {

class CacheEventWriter final : public CacheWatcher,
                               public Sending,
                               public grpc::ServerWriteReactor<v1::CacheEvent>,
                               public std::enable_shared_from_this<CacheEventWriter> {
 public:
  // What waits for a client; more is lost. Numbers are the slots and positions in the events.
  struct Limits {
    size_t events = 1024;
    int64_t numbers = 4 << 20;
  };
  // `place`: held until the call is over.
  CacheEventWriter(SendThread& sender, const v1::WatchCacheEventsRequest& request,
                   const Limits& limits, std::shared_ptr<void> place);

  // gRPC's hold on the object, until OnDone.
  void Hold() { self_ = shared_from_this(); }

  void OnCacheEvent(const std::shared_ptr<const CacheEvent>& event) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;
  void SendNext() override;

 private:
  struct Waiting {
    uint64_t lost;  // right before it
    int64_t numbers;
    std::shared_ptr<const CacheEvent> event;
  };
  v1::CacheEvent ToProto(const Waiting& waiting) const;

  SendThread& sender_;
  const std::string request_id_;  // "" = all
  const std::set<int> layers_;    // empty: all
  const Limits limits_;
  const std::shared_ptr<void> place_;
  std::shared_ptr<CacheEventWriter> self_;
  v1::CacheEvent message_;  // of whoever has set writing_

  std::mutex mutex_;
  std::deque<Waiting> queue_;
  int64_t queued_numbers_ = 0;
  uint64_t lost_ = 0;  // since the last event of the queue
  bool scheduled_ = false;
  bool writing_ = false;
  bool ended_ = false;  // gRPC has been told the end, or will be by who set it
};

}  // namespace keyline
