// CacheLedger: keeps count of what requests have in the caches. How full a lane is follows from how
// many tokens it was given, so no device is asked. Thread: any.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "runtime/engine/cache_events.h"

namespace keyline {

class CacheLedger {
 public:
  explicit CacheLedger(int layers) : evicted_(layers, 0) {}

  // A chunk [first_position, first_position + tokens) of the request has been launched. `policy`:
  // the request's; one call after the other continues where the last one ended.
  void Advance(RequestId request, const LanePolicy& policy, int first_position, int tokens);
  // The request has given up its lane, into which it put `tokens` with what was there before: fewer
  // than were launched where a step was in vain.
  void Close(RequestId request, int tokens);

  // Adds slots_used and evicted to stats[layer].
  void AddTo(std::vector<LayerCacheStats>& stats) const;

 private:
  struct Entry {
    std::vector<int> lengths;  // of the lane, one a layer
    int begin = 0;             // tokens that were there before the first Advance
    int tokens = 0;
  };
  static int64_t Evicted(const Entry& entry, int layer);

  mutable std::mutex mutex_;
  std::map<RequestId, Entry> running_;
  std::vector<int64_t> evicted_;  // by requests that have ended, one a layer
};

}  // namespace keyline
