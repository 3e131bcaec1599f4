// What an engine tells of its caches: events, chunk by chunk, to those who watch, and sums.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/request.h"

namespace keyline {

// What a chunk (or a piece of a first chunk) did to one KV head of one layer's cache: enough to
// replay every decision elsewhere. First all moves at once, then the writes.
struct HeadCacheEvent {
  std::vector<int32_t> slots;  // slots[i] took token first_position + i
  std::vector<int32_t> moved_from;
  std::vector<int32_t> moved_to;
  std::vector<int32_t> evicted;  // positions that the cache lost, ascending
};

struct CacheEvent {
  RequestId request = 0;
  std::string label;  // the client's request id
  int first_position = 0;
  int tokens = 0;
  std::vector<std::vector<HeadCacheEvent>> layers;  // [layer][kv head]
};

class CacheWatcher {
 public:
  virtual ~CacheWatcher() = default;
  // On the engine's thread; must not block.
  virtual void OnCacheEvent(const std::shared_ptr<const CacheEvent>& event) = 0;
};

// Of all lanes. Slots and evictions are counted per KV head: all heads of a layer have as many.
struct LayerCacheStats {
  int layer = 0;
  int rank = 0;
  int64_t capacity = 0;    // slots of all lanes
  int64_t slots_used = 0;  // by the requests that run
  int64_t evicted = 0;     // tokens dropped since the start
  int64_t bytes = 0;       // of all lanes, used or not
};

}  // namespace keyline
